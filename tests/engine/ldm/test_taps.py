import torch
from diffusers import UNet2DConditionModel

from engine.ldm.embedded import build_unet
from engine.ldm.families import pixart_sigma, stable_diffusion_xl
from engine.ldm.taps import capture, measure_taps

# The published topology of stable-diffusion-2-base.
SD2_BASE = dict(
    sample_size=64,
    in_channels=4,
    out_channels=4,
    block_out_channels=(320, 640, 1280, 1280),
    cross_attention_dim=1024,
    attention_head_dim=(5, 10, 20, 20),
    use_linear_projection=True,
)


def test_sd2_base_topology_has_the_papers_taps():
    with torch.device("meta"):
        config = UNet2DConditionModel(**SD2_BASE).config
    taps = measure_taps(config, latent_stride=8)
    assert [(t.stride, t.channels) for t in taps] == [(8, 960), (16, 1600), (32, 1920), (64, 3840)]


# The published topologies of stable-diffusion-xl-base-1.0 and PixArt-Sigma-XL-2-512-MS.
SDXL_BASE = dict(
    sample_size=128,
    in_channels=4,
    out_channels=4,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(320, 640, 1280),
    transformer_layers_per_block=(1, 2, 10),
    cross_attention_dim=2048,
    attention_head_dim=(5, 10, 20),
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)
PIXART_SIGMA_512 = dict(sample_size=64, in_channels=4, out_channels=8, num_layers=28, caption_channels=4096)


def test_sdxl_topology():
    """By its blocks: at stride 8 the outputs of the last two up blocks, 640 + 320; at 16 those of the first down and
    the first up block, 320 + 1280; at 32 of the other down blocks and the middle, 640 + 1280 + 1280."""
    taps = measure_taps(SDXL_BASE, 8, family=stable_diffusion_xl)
    assert [(t.stride, t.channels) for t in taps] == [(8, 960), (16, 1600), (32, 3200)]


def test_pixart_sigma_topology():
    """Three blocks of 16 x 72 channels, at the strides of a pyramid."""
    taps = measure_taps(PIXART_SIGMA_512, 8, family=pixart_sigma)
    assert [(t.stride, t.channels) for t in taps] == [(8, 3456), (16, 3456), (32, 3456), (64, 3456)]
    assert taps[0].blocks == ("transformer_blocks.9", "transformer_blocks.18", "transformer_blocks.27")


def test_measured_taps_are_what_a_call_returns():
    unet = build_unet().eval()
    taps = measure_taps(unet.config, latent_stride=4)
    with capture(unet) as record, torch.no_grad():
        unet(torch.randn(2, 12, 16, 24), torch.tensor([1, 1]), torch.randn(2, 5, 64))
    levels = record.grouped()
    assert [tuple(level.shape) for level in levels] == [(2, t.channels, 64 // t.stride, 96 // t.stride) for t in taps]
    assert set(record.outputs) == {name for tap in taps for name in tap.blocks}
    assert not any(module._forward_hooks for module in unet.modules())
