"""Sizes of transformers' detectors: the published ones, and tiny ones that try a job out on a CPU."""

from __future__ import annotations

_RESNET = {"model_type": "resnet", "out_features": ["stage2", "stage3", "stage4"]}
_TINY_VIT = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": 8,
}
_TINY_DECODER = {
    "decoder_layers": 2,
    "decoder_ffn_dim": 128,
    "d_model": 64,
    "num_queries": 60,
}
_PRIOR = {"initializer_bias_prior_prob": 0.01}  # theirs is 1 / (classes + 1), meant for the 80 classes of COCO
_TINY_HYBRID = {
    **_TINY_DECODER,
    **_PRIOR,
    "encoder_hidden_dim": 64,
    "encoder_ffn_dim": 128,
    "encoder_in_channels": [32, 64, 96],
    "decoder_in_channels": [64, 64, 64],
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "decoder_n_points": 2,
    "num_denoising": 20,
}

# Beside transformers' own defaults: ResNet-50-vd (rtdetr_v2), HGNetv2-B4 (d_fine), ViT-tiny (lw_detr), DINOv2-small.
FULL: dict[str, dict] = {
    "rtdetr_v2": _PRIOR,
    "d_fine": _PRIOR,
    # Its own default asks for a further library's ResNet-50.
    "deformable_detr": {"backbone_config": _RESNET, "with_box_refine": True, "auxiliary_loss": True},
    "lw_detr": {"projector_scale_factors": [1.0]},
    "rf_detr": {},
}

TINY: dict[str, dict] = {
    "rtdetr_v2": {
        **_TINY_HYBRID,
        "backbone_config": {
            "model_type": "rt_detr_resnet",
            "embedding_size": 16,
            "hidden_sizes": [16, 32, 64, 96],
            "depths": [1, 1, 1, 1],
            "layer_type": "basic",
            "out_features": ["stage2", "stage3", "stage4"],
        },
    },
    "d_fine": {
        **_TINY_HYBRID,
        "depth_mult": 0.34,
        "lqe_hidden_dim": 16,
        "backbone_config": {
            "model_type": "hgnet_v2",
            "stem_channels": [3, 16, 16],
            "stage_in_channels": [16, 16, 32, 64],
            "stage_mid_channels": [16, 16, 32, 32],
            "stage_out_channels": [16, 32, 64, 96],
            "hidden_sizes": [16, 32, 64, 96],
            "stage_num_blocks": [1, 1, 1, 1],
            "stage_numb_of_layers": [2, 2, 2, 2],
            "depths": [1, 1, 1, 1],
            "out_features": ["stage2", "stage3", "stage4"],
        },
    },
    "deformable_detr": {
        **_TINY_DECODER,
        "backbone_config": {
            **_RESNET,
            "embedding_size": 16,
            "hidden_sizes": [16, 32, 64, 96],
            "depths": [1, 1, 1, 1],
            "layer_type": "basic",
        },
        "with_box_refine": True,
        "auxiliary_loss": True,
        "encoder_layers": 1,
        "encoder_ffn_dim": 128,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "dropout": 0.0,
    },
    "lw_detr": {
        **_TINY_DECODER,
        "projector_scale_factors": [1.0],
        "c2f_num_blocks": 1,
        "group_detr": 3,
        "decoder_self_attention_heads": 4,
        "decoder_cross_attention_heads": 4,
        "backbone_config": {
            "model_type": "lw_detr_vit",
            **_TINY_VIT,
            "image_size": 64,
            "num_windows": 4,
            "window_block_indices": [0],
            "out_indices": [2, 3],
        },
    },
    "rf_detr": {
        **_TINY_DECODER,
        "group_detr": 3,
        "dropout": 0.0,
        "decoder_self_attention_heads": 4,
        "decoder_cross_attention_heads": 4,
        "backbone_config": {
            "model_type": "rf_detr_dinov2",
            **_TINY_VIT,
            "image_size": 64,
            "num_windows": 2,
            "num_register_tokens": 0,
            "out_features": ["stage2", "stage3"],
        },
    },
}
