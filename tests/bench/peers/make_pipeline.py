"""What diffusers' text-to-image script starts from, made by the Python of its own environment.

`make_pipeline.py UNET_CONFIG.json OUT`: a U-Net of that configuration, and the least of everything else that the script
does not go without: an autoencoder of 8 channels, which halves the side as our stem does, and a text tower of one layer
with twelve positions. Weights are random; nothing is fetched.
"""

import json
import sys
from pathlib import Path

LENGTH = 12  # token positions


def main() -> None:
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    config, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    unet = UNet2DConditionModel.from_config(config)
    unet.save_pretrained(out / "unet")
    AutoencoderKL(
        latent_channels=unet.config.in_channels,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    ).save_pretrained(out / "vae")
    DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction").save_pretrained(out / "scheduler")
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
    words = [*letters, "<|startoftext|>", "<|endoftext|>"]
    folder = out / "tokenizer"
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH})
    )
    CLIPTokenizer.from_pretrained(folder)  # here, where a mistake is easier to see than in the script
    tower = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=unet.config.cross_attention_dim,
        intermediate_size=4 * unet.config.cross_attention_dim,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=words.index("<|startoftext|>"),
        eos_token_id=words.index("<|endoftext|>"),
    )
    CLIPTextModel(tower).save_pretrained(out / "text_encoder")


if __name__ == "__main__":
    main()
