"""`deeprequest serve` in everything but its engine: Redis, Ray Serve, HAProxy, ingress, replica.

python tests/bench/noop_service.py PORT STATE_DIR
"""

import sys
from pathlib import Path

from serve_app.config import ServeConfig
from serve_app.local_service import run
from tests.bench.noop_engine import main as noop_rank

CONFIG = Path(__file__).parents[2] / "configs/quickstart.yaml"

if __name__ == "__main__":
    config = ServeConfig.load(CONFIG, port=int(sys.argv[1]), state_dir=Path(sys.argv[2]))
    engine = {**config.engine, "tensor_parallel_size": 1, "max_num_seqs": 256}
    run(config.model_copy(update={"engine": engine}), noop_rank)
