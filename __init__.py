"""ComfyUI-FLENwheel: character LoRAs that hold up, and keep getting better.

ComfyUI imports this file first. It must never fail and never import anything heavy, so the nodes are imported inside the entry point.
"""

import logging

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """ComfyUI asks here for the nodes of the pack."""
    try:
        from .nodes.extension import FlenwheelExtension

        return FlenwheelExtension()
    except Exception:  # ComfyUI would show one line without a traceback; logged in full, then raised again
        logging.getLogger("flenwheel").exception("FLENwheel could not load its nodes")
        raise
