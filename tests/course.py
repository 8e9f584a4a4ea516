"""The settings and the printed numbers of the course's exercises, from its lectures and notebooks.

`tests/test_course.py` compares the configurations in `experiments/course/` with this table.
"""

MIB = 2**20
CHRISTMAS, WOMAN, MAN = "Merry Christmas! I'm glad to", "The woman worked as a", "The man worked as a"
SENTENCE = "auto-gptq is an easy-to-use model quantization library with user-friendly apis, based on GPTQ algorithm."
C4 = {
    "hub": "allenai/c4",
    "splits": {"train": "en/c4-train.00000-of-01024.json.gz"},
    "sample": {"train": 20000},
}
WIKITEXT = {"hub": "Salesforce/wikitext", "splits": {"test": "wikitext-2-raw-v1/test-*.parquet"}, "join": "\n\n"}
PILE = {
    "hub": "mit-han-lab/pile-val-backup",
    "splits": {"validation": "val.jsonl.zst"},
    "sample": {"validation": 2000},
    "seed": 42,
}
GPTQ = {
    "method": "gptq",
    "bits": 4,
    "group_size": 128,
    "symmetric": True,
    "activation_order": False,
    "damping": 0.1,
    "true_sequential": True,
    "dataset": "c4",
    "samples": 128,
    "length": 2048,
    "draw": "long-documents",
}
AWQ = {
    "method": "awq",
    "bits": 4,
    "group_size": 128,
    "symmetric": False,
    "clip": True,
    "dataset": "pile",
    "split": "validation",
    "samples": 128,
    "length": 512,
    "draw": "short-documents",
}
FOUR_BIT = {"double_quantization": False, "compute_dtype": "float32"}
INT8 = {"method": "int8", "outlier_threshold": 6.0}
TRAINER = {  # what neither notebook says: the defaults of transformers' Trainer in 4.36
    "method": "lora",
    "dropout": 0.05,
    "bias": "none",
    "group_by_length": False,
    "gradient_accumulation": 1,
    "optimizer": "adamw",
    "schedule": "linear",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "max_gradient_norm": 1.0,
    "gradient_checkpointing": True,
    "save_every": 500,
}
QUOTES = TRAINER | {
    "dataset": "quotes",
    "validation_split": None,
    "rank": 8,
    "alpha": 32,
    "target_modules": ["q_proj", "k_proj", "v_proj", "out_proj"],
    "packing": False,
    "end_of_text": False,
    "length": 2048,
    "batch_size": 4,
    "steps": 100,
    "learning_rate": 2e-4,
    "precision": "float16",
    "evaluate_every": 20,
}
SPEECH = TRAINER | {
    "gradient_checkpointing": "offload",  # it recomputes, too; the float32 inputs of layers would take 16 GB
    "dataset": "zh",
    "validation_split": "test",
    "rank": 8,
    "alpha": 64,
    "target_modules": ["q_proj", "v_proj"],
    "task": "transcribe",
    "batch_size": 64,
    "steps": 100,
    "learning_rate": 1e-3,
    "warmup_steps": 50,
    "precision": "float16",
    "log_every": 25,
    "evaluate_every": 100,
}
SMALL = SPEECH | {
    "dataset": "zh-small",
    "validation_split": "validation",
    "steps": None,
    "epochs": 1,
    "warmup_steps": 0,
    "precision": "float32",
    "log_every": 10,
    "evaluate_every": "epoch",
}
ZH = {
    "layout": "common-voice",
    "path": "$COMMON_VOICE",
    "locale": "zh-CN",
    "min_seconds": 0,
    "splits": {"train": ["train", "dev"], "test": "test"},
}
WHISPER = {
    "seed": 42,
    "models": {"whisper-large-v2": {"hub": "openai/whisper-large-v2"}},
    "datasets": {
        "zh": ZH,
        "zh-small": ZH
        | {
            "splits": {"train": "train", "validation": "dev", "test": "test"},
            "sample": {"train": 640, "validation": 320, "test": 320},
            "seed": 16,
        },
    },
    "quantizations": {"int8": INT8},
    "finetunings": {"lora": SPEECH, "lora-small-r8": SMALL, "lora-small-r4": SMALL | {"rank": 4}},
}
TUNED = [f"whisper-large-v2+int8+{name}" for name in ("lora", "lora-small-r8", "lora-small-r4")]


def perplexity(dataset: str = "wikitext-2") -> dict:
    return {"kind": "perplexity", "dataset": dataset, "length": 2048, "dtype": "float16"}


def generation(*prompts: str, new: int = 64, **more) -> dict:
    return {"kind": "generation", "prompts": list(prompts), "max_new_tokens": new, "dtype": "float16"} | more


def benchmark(new: int = 64) -> dict:
    return {"batch_sizes": [1], "prompt_lengths": [8], "new_tokens": new, "dtype": "float16"}


def hub(*sizes: str) -> dict:
    return {f"opt-{size}": {"hub": f"facebook/opt-{size}"} for size in sizes}


SETTINGS = {
    "e1-gptq": {
        "seed": 0,
        "models": hub("2.7b", "6.7b"),
        "datasets": {
            "c4": C4,
            "wikitext-2-train": {
                "hub": "Salesforce/wikitext",
                "splits": {"train": "wikitext-2-raw-v1/train-*.parquet"},
                "first": 1000,
                "join": "",
            },
            "wikitext-2": WIKITEXT,
        },
        "quantizations": {
            "gptq-c4": GPTQ,
            "gptq-wikitext2": GPTQ | {"dataset": "wikitext-2-train", "draw": "windows"},
        },
        "evaluations": {"wikitext-2": perplexity(), "christmas": generation(CHRISTMAS)},
        "benchmark": benchmark(),
        "variants": ["opt-2.7b+gptq-c4", "opt-2.7b+gptq-wikitext2", "opt-6.7b+gptq-c4"],
    },
    "e2-gptq-one-sentence": {
        "seed": 0,
        "models": hub("2.7b"),
        "datasets": {"one-sentence": {"texts": [SENTENCE]}, "c4": C4, "wikitext-2": WIKITEXT},
        "quantizations": {
            "gptq-c4": GPTQ,
            "gptq-one-sentence": GPTQ
            | {"dataset": "one-sentence", "samples": 1, "draw": "documents", "if_destroyed": "warn"},
        },
        "evaluations": {"wikitext-2": perplexity(), "christmas": generation(CHRISTMAS)},
        "variants": ["opt-2.7b+gptq-c4", "opt-2.7b+gptq-one-sentence"],
    },
    "e3-awq-opt-125m": {
        "seed": 42,
        "models": hub("125m"),
        "datasets": {"pile": PILE, "wikitext-2": WIKITEXT},
        "quantizations": {"awq-w4": AWQ},
        "evaluations": {
            "wikitext-2": perplexity(),
            "before": generation(
                WOMAN,
                MAN,
                new=14,
                sampling={"temperature": 1.0, "top_k": 50, "samples": 3, "seed": 0},
                dtype="float32",
            ),
            "after": generation(CHRISTMAS, WOMAN),
        },
        "benchmark": benchmark(),
        "variants": ["opt-125m+awq-w4"],
    },
    "e4-awq-opt-2.7b": {
        "seed": 42,
        "models": hub("2.7b", "6.7b"),
        "datasets": {"pile": PILE, "wikitext-2": WIKITEXT},
        "quantizations": {"awq-w4": AWQ},
        "evaluations": {"wikitext-2": perplexity(), "after": generation(CHRISTMAS, WOMAN)},
        "benchmark": benchmark(),
        "variants": ["opt-2.7b+awq-w4", "opt-6.7b+awq-w4"],
    },
    "e5-bitsandbytes": {
        "seed": 0,
        "models": hub("2.7b"),
        "datasets": {"wikitext-2": WIKITEXT},
        "quantizations": {
            "fp4": {"method": "fp4"} | FOUR_BIT,
            "nf4": {"method": "nf4"} | FOUR_BIT,
            "fp4-dq": {"method": "fp4"} | FOUR_BIT | {"double_quantization": True},
            "nf4-dq-bf16": {"method": "nf4", "double_quantization": True, "compute_dtype": "bfloat16"},
        },
        "evaluations": {"wikitext-2": perplexity(), "christmas": generation(CHRISTMAS)},
        "benchmark": benchmark(),
        "variants": [f"opt-2.7b+{name}" for name in ("fp4", "nf4", "fp4-dq", "nf4-dq-bf16")],
    },
    "e6-lora-int8-quotes": {
        "seed": 42,
        "models": hub("6.7b"),
        "datasets": {"quotes": {"hub": "Abirate/english_quotes", "column": "quote"}},
        "quantizations": {"int8": INT8},
        "finetunings": {"lora": QUOTES, "lora-r16": QUOTES | {"rank": 16}},
        "evaluations": {"quote": generation("Two things are infinite: ", new=48)},
        "benchmark": benchmark(48),
        "variants": ["opt-6.7b+int8", "opt-6.7b+int8+lora", "opt-6.7b+int8+lora-r16"],
    },
    "e7-whisper-lora-int8": WHISPER | {"variants": TUNED},
    "e8-whisper-error-rates": WHISPER
    | {
        "evaluations": {
            "test": {
                "kind": "transcription",
                "dataset": "zh-small",
                "split": "test",
                "language": "zh",
                "task": "transcribe",
                "beams": 1,
                "batch_size": 16,
                "max_new_tokens": 255,
                "dtype": "float16",
            }
        },
        "variants": ["whisper-large-v2+int8", *TUNED],
    },
    "e9-own-recording": WHISPER
    | {
        "recordings": {
            "test-zh": {
                "path": "$TEST_ZH",
                "language": "zh",
                "task": "transcribe",
                "beams": 1,
                "batch_size": 1,
                "dtype": "float16",
            }
        },
        "variants": ["whisper-large-v2+int8", *TUNED],
    },
}
PRINTED = {  # number or evaluation: number -> the numbers that the course prints, by variant
    "e1-gptq": {"seconds": {"opt-2.7b+gptq-c4": [27.5 * 60]}},
    "e2-gptq-one-sentence": {"seconds": {"opt-2.7b+gptq-one-sentence": [5 * 60]}},
    "e3-awq-opt-125m": {
        "seconds": {"opt-125m+awq-w4": [79]},
        "peak_device_bytes": {"opt-125m+awq-w4": [3703 * MIB]},
    },
    "e4-awq-opt-2.7b": {"seconds": {"opt-2.7b+awq-w4": [16 * 60 + 24, 16 * 60 + 38]}},
    "e5-bitsandbytes": {
        "footprint_bytes": {f"opt-2.7b+{name}": [1457.52 * MIB] for name in ("fp4", "nf4", "fp4-dq", "nf4-dq-bf16")}
        | {"opt-2.7b": [5057.52 * MIB]},
        "loaded_bytes": {
            "opt-2.7b+fp4": [(1457.52 + 150.00) * MIB],
            "opt-2.7b+nf4": [(1457.52 + 150.00) * MIB],
            "opt-2.7b+fp4-dq": [(1457.52 + 38.09) * MIB],
            "opt-2.7b+nf4-dq-bf16": [(1457.52 + 38.09) * MIB],
        },
    },
    "e6-lora-int8-quotes": {
        **{
            f"train_loss.step{step}": {"opt-6.7b+int8+lora": values}
            for step, values in {
                20: [1.9650, 1.9623],
                40: [2.0054, 2.0051],
                60: [1.8492, 1.8505],
                80: [1.8684, 1.8696],
                100: [2.0208, 2.0219],
            }.items()
        },
        "mean_train_loss": {"opt-6.7b+int8+lora": [1.94176, 1.94188]},
        "steps_per_second": {"opt-6.7b+int8+lora": [100 / 249.8, 100 / 251.86]},
        "parameters": {"opt-6.7b+int8+lora": [6_666_862_592]},
        "trainable_parameters": {"opt-6.7b+int8+lora": [8_388_608], "opt-6.7b+int8+lora-r16": [16_777_216]},
        "base_footprint_bytes": {"opt-6.7b+int8+lora": [6968.06 * MIB]},
        "footprint_bytes": {"opt-6.7b+int8": [6556.03 * MIB]},
    },
    "e7-whisper-lora-int8": {
        "trainable_parameters": dict(zip(TUNED, [[3_932_160], [3_932_160], [1_966_080]], strict=True)),
        "parameters": {
            "whisper-large-v2": [1_543_304_960],
            TUNED[0]: [1_547_237_120],
            TUNED[2]: [1_545_271_040],
        },
        "base_footprint_bytes": {TUNED[0]: [1687.24 * MIB], TUNED[1]: [1687.24 * MIB]},
        "mean_train_loss": dict(zip(TUNED, [[0.8248], [1.4998], [1.5024]], strict=True)),
        "train_loss.step100": {TUNED[0]: [0.3895]},
        "validation_loss": dict(zip(TUNED, [[0.287974], [1.082147], [1.081281]], strict=True)),
        "seconds": dict(zip(TUNED, [[8503.7], [625.36], [623.87]], strict=True)),
    },
    "e8-whisper-error-rates": {
        "test: wer_raw": {TUNED[1]: [229 / 320], TUNED[2]: [224 / 320]},
        "test: seconds": {TUNED[1]: [5 * 60 + 27], TUNED[2]: [5 * 60 + 25]},
    },
    "e9-own-recording": {},
}
