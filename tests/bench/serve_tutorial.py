"""Diffusers behind Ray Serve as Ray's documentation serves Stable Diffusion: what our endpoint is measured by.

https://docs.ray.io/en/latest/serve/tutorials/stable-diffusion.html: a FastAPI ingress, and a deployment that holds the
pipeline and draws one picture a call, torch eager. The network, the schedule, the prompts' states and guidance are
those of our bundle; its parts are loaded as diffusers loads them.
"""

import io
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import Response
from ray import serve
from ray.serve.handle import DeploymentHandle

app = FastAPI()


@serve.deployment(ray_actor_options={"num_cpus": 0})
@serve.ingress(app)
class Ingress:
    def __init__(self, model: DeploymentHandle) -> None:
        self.handle = model

    @app.get("/imagine")
    async def generate(self, prompt: str, steps: int, guidance_scale: float, seed: int) -> Response:
        data = await self.handle.generate.remote(prompt, steps, guidance_scale, seed)
        return Response(data, media_type="image/png")


@serve.deployment(ray_actor_options={"num_cpus": 1})
class Pipeline:
    def __init__(self, bundle: str) -> None:
        import torch

        from curation import torchvision_ops

        torchvision_ops.declare()
        from diffusers import DDIMScheduler, UNet2DConditionModel

        from training.text import TextEncoder

        torch.set_num_threads(1)
        self.unet = UNet2DConditionModel.from_pretrained(bundle, subfolder="unet").eval()
        self.scheduler = DDIMScheduler.from_pretrained(bundle, subfolder="scheduler")
        self.text = TextEncoder(Path(bundle) / "text_encoder")

    def generate(self, prompt: str, steps: int, guidance_scale: float, seed: int) -> bytes:
        import torch
        from PIL import Image

        with torch.inference_mode():
            told = self.text.encode([prompt, ""])
            self.scheduler.set_timesteps(steps)
            side = self.unet.config.sample_size
            x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed))
            for t in self.scheduler.timesteps:
                output = self.unet(
                    torch.cat([x, x]), t, told.states, class_labels=told.pooled, encoder_attention_mask=told.mask
                ).sample
                conditional, unconditional = output.chunk(2)
                output = unconditional + guidance_scale * (conditional - unconditional)
                x = self.scheduler.step(output, t, x).prev_sample
            pixels = ((x[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
        buffer = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(buffer, format="png")
        return buffer.getvalue()


def run(bundle: Path, route_prefix: str) -> None:
    """Deploys it on the cluster that this process is connected to."""
    serve.run(Ingress.bind(Pipeline.bind(str(bundle))), name="tutorial", route_prefix=route_prefix)
