"""The commands that need the extra ``cli`` (typer, rich); imported on request."""
