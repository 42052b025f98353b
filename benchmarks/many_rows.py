"""How long `Simplex & Box & m Halfspace` takes to compile and to project on.

The m half-spaces have 12 or 4,096 entries.

KERAS_BACKEND=jax python benchmarks/many_rows.py
"""

import functools
import operator
import time

import keras
import numpy as np

import inbounds as ib

rng = np.random.default_rng(0)
print(f"{'entries':>8}{'m':>4}{'first, s':>10}{'then, ms':>10}{'outside':>9}")
for size in (12, 4096):
    rows = keras.ops.convert_to_tensor(rng.standard_normal((64, size)).astype("float32"))
    for count in (1, 2, 4, 8, 16):
        caps = [ib.Halfspace(rng.uniform(size=size), 0.9) for _ in range(count)]
        owner = functools.reduce(operator.and_, [ib.Simplex(), ib.Box(0, 0.5), *caps])
        times = []
        for _ in range(8):
            start = time.perf_counter()
            result = np.asarray(keras.ops.convert_to_numpy(owner.project(rows)))
            times.append(time.perf_counter() - start)
        outside = int(owner.measure([result], [(1,)]).outside.sum())
        print(f"{size:8}{count:4}{times[0]:10.2f}{1e3 * np.median(times[1:]):10.1f}{outside:9}", flush=True)
