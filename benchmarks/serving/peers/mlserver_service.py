"""The recipe in MLServer: mlserver start benchmarks/serving/peers/mlserver"""

from mlserver import MLModel
from mlserver.codecs import Base64Codec
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

from benchmarks.serving.peers import recipe


class Cat(MLModel):
    async def load(self) -> bool:
        self.model = recipe.load()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        [data] = Base64Codec.decode_input(payload.inputs[0])
        probability = recipe.predict(self.model, data)
        output = ResponseOutput(
            name="cat_probability", shape=[1, 1], datatype="FP32", data=[probability]
        )
        return InferenceResponse(model_name=self.name, outputs=[output])
