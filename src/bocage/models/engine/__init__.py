"""The fast encoder: same answers as ``bocage.models.encoder``, in a fraction of the time.

Read ``bocage/models/encoder.py`` first: it is the same network as plain modules, and every test
here compares with it. Then, in this order:

``build.py``      which precision, batch and engine a machine gets, and why
``fast.py``       ``FastEncoder``, called like ``Encoder``: what depends on shapes and dates alone
                  is made once and kept, hidden tokens are told, outputs are put together
``cpu.py``        the engine of CPUs with AMX: patches, blocks, last norm
``blocks.py``     a transformer block is four linear maps and attention
``linear.py``     a linear map with its norm before and its GELU or sum after, and weights as tiles
``kernels.py``    the other kernels as functions of tensors
``tables.py``     angles of times and places, order of tokens, weights of a resize

What happens to four windows of Sentinel-2, 128 x 128 px, one date, patch size 8, base, bf16::

    values     [4, 128, 128, 1, 12]  product units
      patch_pixels   patches.cpp     normalize, resize to 8 x 8 if need be, pixel network
    pixels     [4 * 256, 64 * n]     a row for each token
      Linear.rows    patch projection; encodings are added
    tokens     [4, 16, 16, 1, 1, 768] = [B, h, w, T, S, D], then [B, N, D] with N = h w T S
      to_tiles       [32, 24, 32, 32]: blocks of 32 tokens x 32 channels, which stay so
      12 times, FastBlock:
        qkv          [1024, 2304]    norm and product in one pass
        attention    [32, 24, 32, 32]  turned by time and place, scores, softmax, values
        proj         added to the tokens in place
        fc1, fc2     [32, 96, 32, 32] with norm and GELU, then added in place
      from_tiles     [4, 256, 768]
    pool.cpp   [4, 16, 16, 768]      last norm and mean: the map

fp32 is the same with tokens as rows [1024, 768]: its products pack them (``product_of_rows.h``).
int8 quantizes rows before each product (``product_of_tiles.cpp``), everything between stays bf16.

In C++: ``vectors.h`` (16 numbers at a time), ``tiles.h`` (the tile registers), then
``product_of_tiles.cpp``, ``product_of_rows.h`` and ``.cpp``, ``attention.h`` and ``.cpp``,
``patches.cpp``, ``pool.cpp``. ``bocage/models/native.py`` compiles and opens them.

On their own: ``locations.py`` (the pooler of v1.3), ``sliding.py`` and ``.cpp`` (seam-free maps of
one large domain), ``compiled.py`` (the same algebra for ``torch.compile``: GPUs, other CPUs).
Kernels of a training step are in ``bocage/models/training_kernels``.
"""

from bocage.models.engine.build import (
    PRECISIONS,
    check_compile,
    choose_batch,
    choose_precision,
    fast_encoder,
)
from bocage.models.engine.fast import FastEncoder

__all__ = [
    "PRECISIONS",
    "FastEncoder",
    "check_compile",
    "choose_batch",
    "choose_precision",
    "fast_encoder",
]
