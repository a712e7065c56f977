"""`genward serve`."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer()


@app.command("serve")
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; else the configuration's.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 for any free one.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes.")] = None,
) -> None:
    """Serve releases over HTTP and supervise the log's writer. Ctrl-C stops both."""
    from genward.cli.common import settings
    from genward_services.supervise import run

    run(settings.state, host=host, port=port, workers=workers)
