import torch
from diffusers import UNet2DConditionModel

from engine.ldm.embedded import build_unet
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


def test_measured_taps_are_what_a_call_returns():
    unet = build_unet().eval()
    taps = measure_taps(unet.config, latent_stride=4)
    with capture(unet) as record, torch.no_grad():
        unet(torch.randn(2, 12, 16, 24), torch.tensor([1, 1]), torch.randn(2, 5, 64))
    levels = record.grouped()
    assert [tuple(level.shape) for level in levels] == [(2, t.channels, 64 // t.stride, 96 // t.stride) for t in taps]
    assert set(record.outputs) == {name for tap in taps for name in tap.blocks}
    assert not any(module._forward_hooks for module in unet.modules())
