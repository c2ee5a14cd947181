"""The viewer: one page, a list of volumes, and each volume's voxels and curve."""

import json
import secrets
from typing import TYPE_CHECKING, Any

from slicewise.errors import UserError
from slicewise.viewer.display import windows
from slicewise.viewer.server import application, asset, asset_routes, host_names, page, redirect
from slicewise.viewer.shelf import Shelf

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.responses import Response

PACKAGE = "slicewise.viewer"


def viewer(shelf: Shelf, host: str = "127.0.0.1", token: str | None = None) -> "tuple[Starlette, str]":
    """The app, and the path to open: below a random token, since other people on this machine reach the port too."""
    from starlette.routing import Mount, Route

    token = token or secrets.token_urlsafe(16)
    front = asset(PACKAGE, "view.html")

    async def start(request: Any) -> "Response":
        return page(front, "text/html")

    async def listing(request: Any) -> "Response":
        labels = [
            {"title": held.title, "names": {str(label): name for label, name in held.names.items()}}
            for held in shelf.labels
        ]
        return _json({"volumes": [e.title for e in shelf.entries], "windows": windows(), "labels": labels})

    # Plain functions: Starlette runs them in threads, so reading a volume stops nobody.
    def about(request: Any) -> "Response":
        return _of(request, lambda index: _json(shelf.shown(index).about))

    def voxels(request: Any) -> "Response":
        return _of(request, lambda index: page(shelf.shown(index).nifti, "application/octet-stream"))

    def means(request: Any) -> "Response":
        return _of(request, lambda index: _json(shelf.curve(index)))

    def information(request: Any) -> "Response":
        return _of(request, lambda index: _json(shelf.information(index)))

    def labelled(request: Any) -> "Response":
        labels = request.path_params["labels"]
        if labels >= len(shelf.labels):
            return _json({"error": f"there are no labels {labels}"}, 404)
        return _of(request, lambda index: page(shelf.labelled(index, labels), "application/octet-stream"))

    def _of(request: Any, answer: Any) -> "Response":
        index = request.path_params["index"]
        if index >= len(shelf.entries):
            return _json({"error": f"there is no volume {index}"}, 404)
        try:
            found: Response = answer(index)
            return found
        except UserError as error:
            return _json({"error": str(error)}, 422)

    routes = [
        Route("/", start),
        Route("/volumes", listing),
        Route("/volumes/{index:int}", about),
        Route("/volumes/{index:int}.nii", voxels),
        Route("/volumes/{index:int}/curve", means),
        Route("/volumes/{index:int}/information", information),
        Route("/volumes/{index:int}/labels/{labels:int}.nii", labelled),
        *asset_routes(PACKAGE),
    ]

    async def slash(request: Any) -> "Response":
        return redirect(f"{token}/")

    mounted = [Route(f"/{token}", slash), Mount(f"/{token}", routes=routes)]
    return application(mounted, host_names(host)), f"/{token}/"


def _json(value: Any, status: int = 200) -> "Response":
    return page(json.dumps(value).encode(), "application/json", status)
