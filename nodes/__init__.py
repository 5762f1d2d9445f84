"""The adapter between ComfyUI and the domain. Imports nothing by itself: `extension` holds the nodes, `launch` and `queue` work without ComfyUI."""
