"""The recipe in Ray Serve: python -m benchmarks.serving.peers.ray_service PORT WORKERS"""

import signal
import sys

import ray
from ray import serve
from ray.serve.schema import LoggingConfig
from starlette.requests import Request

from benchmarks.serving.peers import recipe


class Cat:
    def __init__(self) -> None:
        self.model = recipe.load()

    async def __call__(self, request: Request) -> dict[str, float]:
        return {"cat_probability": recipe.predict(self.model, await request.body())}


if __name__ == "__main__":
    port, workers = map(int, sys.argv[1:])
    logging = LoggingConfig(enable_access_log=False)
    ray.init(num_cpus=workers, include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=logging)
    replicas = serve.deployment(num_replicas=workers, ray_actor_options={"num_cpus": 1})(Cat)
    serve.run(replicas.bind(), logging_config=logging)
    signal.pause()
