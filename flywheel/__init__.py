"""The domain: characters, images, verdicts, laps. Plain Python over files and SQLite; knows nothing of ComfyUI."""
