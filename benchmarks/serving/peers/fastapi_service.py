"""A FastAPI service as tutorials have it: uvicorn benchmarks.serving.peers.fastapi_service:app"""

from fastapi import FastAPI, UploadFile

from benchmarks.serving.peers import recipe

app = FastAPI()
model = recipe.load()


@app.post("/predict")
async def predict(file: UploadFile) -> dict[str, float]:
    return {"cat_probability": recipe.predict(model, await file.read())}
