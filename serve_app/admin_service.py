"""The admin service: /admin/v1 alone, as a process beside the tenants file.

Owns that process and its application. Where ingresses have no tenants file of the service's own, as
on a cluster, keys are changed over HTTP here, written into that file and told to Redis. Serves no
text, holds no lease and takes no part in admission.
"""

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from serve_app.admin.routes import admin_routes
from serve_app.config import ServiceState
from serve_app.http_errors import install_error_handlers
from serve_app.http_limits import HttpLimits
from serve_app.key_check import KeyLookup
from serve_app.tenancy.admission import AdmissionQueue
from serve_app.tenancy.key_admin import KeyAdmin
from serve_app.tenancy.key_file import KeyFile
from serve_app.tenancy.secret import load_pepper
from serve_app.tenancy.store import Store


def create_admin_app(lookup: KeyLookup, keys: KeyAdmin) -> ASGIApp:
    """The application; every route but /health demands a key with the scope `admin`."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    install_error_handlers(app)
    app.include_router(admin_routes(lookup, keys))

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    return HttpLimits(app)


async def serve_admin(state: ServiceState, redis_url: str, host: str, port: int) -> None:
    """Serves until SIGTERM or Ctrl-C. Redis need not be there at the start."""
    pepper = load_pepper(state.pepper_path)
    async with Store(redis_url, state.admission.pool) as store:
        file = KeyFile(state.tenants_path, pepper)
        lookup = AdmissionQueue(store, file, pepper)  # never started: it looks keys up, no more
        app = create_admin_app(lookup, KeyAdmin(store, file))
        config = uvicorn.Config(app, host=host, port=port, log_level="warning", access_log=False)
        await uvicorn.Server(config).serve()
