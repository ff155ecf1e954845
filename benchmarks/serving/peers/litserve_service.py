"""The recipe in LitServe: python -m benchmarks.serving.peers.litserve_service PORT WORKERS"""

import sys

import litserve
from fastapi import Request

from benchmarks.serving.peers import recipe


class Cat(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = recipe.load()

    def decode_request(self, request: Request) -> bytes:
        data: bytes = request["file"].file.read()
        return data

    def predict(self, data: bytes) -> float:
        return recipe.predict(self.model, data)

    def encode_response(self, probability: float) -> dict[str, float]:
        return {"cat_probability": probability}


if __name__ == "__main__":
    port, workers = map(int, sys.argv[1:])
    server = litserve.LitServer(
        Cat(), accelerator="cpu", workers_per_device=workers, fast_queue=True, timeout=False
    )
    server.run(
        host="127.0.0.1",
        port=port,
        num_api_servers=workers,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
