"""Real neural encoders of a few hundred weights, and a program that extracts with them.

    python tiny_encoders.py DATA_DIR KIND [--slow SECONDS]

The program serves tests that kill it, or start it several times under torchrun's variables.
"""

from __future__ import annotations

import os
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mmbench.encoders.neural import Encoded, Hub, NeuralEncoder, TokenIds

VOCABULARY, WIDTH, SIDE, LIMIT = 97, 6, 8, 12


class Tiny(NeuralEncoder):
    """What all of them share. Ids are checksums of words; 0 is padding.

    Attributes:
        batches: how many items each batch held, in order.
        n_loads: how often weights were read.
        most: batches of more items run out of memory.
    """

    hub = Hub("", licence="MIT")
    modalities = ("visual", "textual")
    takes = frozenset({"tokens", "max_tokens", "preprocess"})
    seed = 0

    def __init__(self, options=None, *, most=None, slow_s=0.0):
        super().__init__(options)
        self.batches, self.n_loads, self.most, self.slow_s = [], 0, most, slow_s

    def load(self):
        self.n_loads += 1
        generator = torch.Generator().manual_seed(self.seed)
        module = nn.ModuleDict(
            {
                "words": nn.Embedding(VOCABULARY, WIDTH),
                "text": nn.Linear(WIDTH, 5),
                "pixels": nn.Linear(3 * SIDE * SIDE, 4),
            }
        )
        with torch.no_grad():
            for weight in module.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator))
        self.module = module.eval()

    @property
    def settings(self):
        return {"weights_sha256": f"seed {self.seed}", "limit": self.limit, "revision": "any"}

    @property
    def limit(self):
        return self.options.max_tokens or LIMIT

    def tokenize(self, texts):
        ids = [[1 + zlib.crc32(w.encode()) % (VOCABULARY - 1) for w in t.split()] for t in texts]
        return [TokenIds(tuple(i[: self.limit]), len(i) > self.limit) for i in ids]

    def text_batch(self, texts):
        longest = max(len(text.ids) for text in texts)
        rows = [list(text.ids) + [0] * (longest - len(text.ids)) for text in texts]
        return {"ids": torch.tensor(rows)}

    def read_picture(self, picture, item):
        small = np.asarray(picture.resize((SIDE, SIDE)), dtype=np.float32) / 255
        return torch.from_numpy(small.transpose(2, 0, 1).copy())

    def picture_batch(self, pictures):
        return {"pixels": torch.stack(list(pictures))}

    def _count(self, n):
        self.batches.append(n)
        time.sleep(self.slow_s)
        if self.most is not None and n > self.most:
            raise RuntimeError(f"CUDA out of memory. Tried to allocate {n} of {self.most}.")

    def _words(self, ids):
        mask = ids > 0
        states = torch.tanh(self.module["words"](ids)) * mask.unsqueeze(2)
        mean = states.sum(1) / mask.sum(1, keepdim=True)
        return Encoded(self.module["text"](mean), states, mask)

    def encode_text(self, texts):
        self._count(len(texts["ids"]))
        return self._words(texts["ids"])

    def encode_picture(self, pictures):
        pixels = pictures["pixels"]
        self._count(len(pixels))
        patches = pixels.flatten(2).transpose(1, 2)[:, :7]
        return Encoded(self.module["pixels"](pixels.flatten(1)), patches)


class TinyText(Tiny):
    modalities = ("textual",)


class TinyPicture(Tiny):
    modalities = ("visual",)


class TinyJoint(Tiny):
    """Reads both: the set of pairs, and one of texts by its own position."""

    modalities = ("joint", "textual")
    is_joint = True

    def encode_joint(self, texts, pictures):
        self._count(len(texts["ids"]))
        words = self._words(texts["ids"])
        seen = self.module["pixels"](pictures["pixels"].flatten(1))
        return {"joint": Encoded(torch.cat([words.pooled, seen], 1)), "textual": words}


KINDS = {"dual": Tiny, "text": TinyText, "picture": TinyPicture, "joint": TinyJoint}


def main(data_dir, kind, slow_s):
    from mmbench.data.prepared import load_dataset
    from mmbench.engine import extraction
    from mmbench.errors import MMBenchError

    torch.set_num_threads(1)
    extraction.POOLED_ITEMS = 4
    encoder = KINDS[kind](slow_s=slow_s)
    how = extraction.How(batch_size=3, device="cpu")
    try:
        done = extraction.extract_neural(load_dataset("mine", Path(data_dir)), "tiny", encoder, how)
    except MMBenchError as problem:
        sys.stderr.write(f"{problem}\n")
        return 2
    rank = os.environ.get("RANK", "-")
    sys.stdout.write(f"rank {rank}: {[one.is_new for one in done]} {sum(encoder.batches)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], float(sys.argv[3]) if len(sys.argv) > 3 else 0.0))
