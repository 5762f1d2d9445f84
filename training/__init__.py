"""Training of LoRAs, outside ComfyUI's process. Knows the domain, not ComfyUI. Engines arrive with the training wheel."""
