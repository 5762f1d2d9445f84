"""Training LoRAs: settings, jobs, workers, engines. Knows the domain, not ComfyUI."""
