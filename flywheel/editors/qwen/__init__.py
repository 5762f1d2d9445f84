"""Qwen-Image-Edit on diffusers, taken apart so that each piece can be made right and kept resident.

`models` knows folders (no torch); `tensors` reads weight files; `quantised` holds 4- and 8-bit linears; `modulation` replaces what sees only the
timestep by tables; `load` puts a transformer together from these; `adapters` stacks LoRAs on it; `encode` and `latents` turn words and pictures
into numbers and back; `denoise` is the loop; `guard` looks at results; `memory` plans and falls back; `engine` runs a batch with all of it.

Importing these modules needs torch, except `models`. diffusers, transformers, peft, accelerate and bitsandbytes are imported where they are used.
"""
