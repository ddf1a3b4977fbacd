"""Kernels in Triton of the delta rule, in chunks of C steps as `_matrix_kernels`; `_matrix_gpu` starts them.

What is written at step t is β[t](v[t] − h·k[t]), with h after the decay. In a chunk these are the rows of
(I + A)⁻¹(β v − β decay k·h) for the state h before it. So `prepare` solves for u, of v, and w, of k, in all
chunks side by side. With what is written known, the rest is a scan without the delta rule.
"""

import triton
import triton.language as tl


@triton.jit
def prepare(
    k,
    v,
    g,
    beta,
    n,
    lengths,
    inverse,
    w,
    u,
    T,
    H,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """(I + A)⁻¹, A[t, s] = β[t] k[t]·k[s] decay for s < t; its products w with β decay k, u with β v."""
    c, bh, rt = tl.program_id(0), tl.program_id(1), tl.arange(0, C)
    b, h = (bh // H).to(tl.int64), bh % H
    NT = tl.num_programs(0)
    t = c * C + rt
    end = T if lengths is None else tl.load(lengths + b).to(tl.int32)
    row = (b * T + t) * H + h
    prow0 = (b * NT * C + c * C) * H + h
    ok = t < end
    A = tl.zeros((C, C), tl.float32)
    for i in range(K // BK):
        rk = i * BK + tl.arange(0, BK)
        kk = tl.load(k + row[:, None] * K + rk[None, :], mask=ok[:, None], other=0)
        A = tl.dot(kk, tl.trans(kk), A)
    G = tl.load(g + prow0 + rt * H)
    bt = tl.load(beta + row, mask=ok, other=0).to(tl.float32)
    bt = tl.where(tl.abs(bt) < 1e-6, 1e-6, bt)
    before = rt[:, None] > rt[None, :]
    start = tl.exp2(G) * bt
    if n is not None:
        num = tl.load(n + b * NT * C + t)
        before = before & (num[:, None] == tl.load(n + b * NT * C + t)[None, :])
        start = tl.where(num == 0, start, 0)
    A = tl.where(before, A * tl.exp2(tl.where(before, G[:, None] - G[None, :], 0)) * bt[:, None], 0)
    # blocks of 16 on the diagonal: row after row
    N: tl.constexpr = C // 16
    own = tl.arange(0, N)[:, None, None, None] == tl.arange(0, N)[None, None, :, None]
    D = tl.sum(tl.where(own, tl.reshape(A, (N, 16, N, 16)), 0), 2)
    r16 = tl.arange(0, 16)
    X = tl.where(r16[None, :, None] == r16[None, None, :], 1.0, tl.zeros((N, 16, 16), tl.float32))
    for a in range(1, 16):
        line = tl.sum(tl.where(r16[None, :, None] == a, D, 0), 1)
        change = tl.sum(tl.expand_dims(line, 2) * X, 1)
        X = tl.where(r16[None, :, None] == a, X - tl.expand_dims(change, 1), X)
    X = tl.reshape(tl.where(own, tl.broadcast_to(X[:, :, None, :], (N, 16, N, 16)), 0), (C, C))
    A = tl.where(rt[:, None] // 16 == rt[None, :] // 16, 0, A)
    A = tl.dot(X, A, input_precision="tf32")
    square = tl.dot(A, A, input_precision="tf32")
    P = tl.where(rt[:, None] == rt[None, :], 1.0, square - A) - tl.dot(square, A, input_precision="tf32")
    X = tl.dot(P, X, input_precision="tf32").to(k.dtype.element_ty)
    tl.store(inverse + row[:, None] * C + rt[None, :], X, mask=(t < T)[:, None])
    for i in range(K // BK):
        rk = i * BK + tl.arange(0, BK)
        kk = tl.load(k + row[:, None] * K + rk[None, :], mask=ok[:, None], other=0)
        ww = tl.dot(X, (kk * start[:, None]).to(kk.dtype))
        tl.store(w + row[:, None] * K + rk[None, :], ww.to(w.dtype.element_ty), mask=(t < T)[:, None])
    for i in range(V // BV):
        rv = i * BV + tl.arange(0, BV)
        vv = tl.load(v + row[:, None] * V + rv[None, :], mask=ok[:, None], other=0)
        uu = tl.dot(X, (vv * bt[:, None]).to(vv.dtype))
        tl.store(u + row[:, None] * V + rv[None, :], uu.to(u.dtype.element_ty), mask=(t < T)[:, None])


@triton.jit
def delta_states(
    q,
    k,
    w,
    u,
    dy,
    g,
    n,
    lengths,
    first,
    hs,
    news,
    last,
    T,
    H,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    BV: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """States before chunks, and news = u − w h; REVERSE: gradients after chunks, news = u + k·dh."""
    bh = tl.program_id(1)
    b, h = (bh // H).to(tl.int64), bh % H
    rk, rv, rt = tl.arange(0, K), tl.program_id(0) * BV + tl.arange(0, BV), tl.arange(0, C)
    NT = tl.cdiv(T, C)
    end = T if lengths is None else tl.load(lengths + b).to(tl.int32)
    S = tl.zeros((K, BV), tl.float32)
    place = (bh.to(tl.int64) * V + rv[None, :]) * K + rk[:, None]
    if first is not None:
        S += tl.load(first + place).to(tl.float32)
    for i in range(NT):
        c = NT - 1 - i if REVERSE else i
        t = c * C + rt
        half = S.to(hs.dtype.element_ty)
        tl.store(hs + ((bh.to(tl.int64) * NT + c) * K + rk[:, None]) * V + rv[None, :], half)
        row, prow = (b * T + t) * H + h, (b * NT * C + t) * H + h
        ok = t < end
        G = tl.load(g + prow)
        Gl = tl.load(g + (b * NT * C + c * C + C - 1) * H + h)
        to_end, from_start, through = tl.exp2(Gl - G), tl.exp2(G), tl.exp2(Gl)
        if n is not None:
            num, n_last = tl.load(n + b * NT * C + t), tl.load(n + b * NT * C + c * C + C - 1)
            to_end = tl.where(num == n_last, to_end, 0)
            from_start = tl.where(num == 0, from_start, 0)
            through = tl.where(n_last == 0, through, 0)
        new = tl.load(u + row[:, None] * V + rv[None, :], mask=ok[:, None], other=0).to(tl.float32)
        S = S * through
        if REVERSE:
            kk = tl.load(k + row[:, None] * K + rk[None, :], mask=ok[:, None], other=0)
            new += tl.dot(kk, half) * to_end[:, None]
            new = new.to(half.dtype)
            qT = tl.load(q + row[None, :] * K + rk[:, None], mask=ok[None, :], other=0)
            do = tl.load(dy + row[:, None] * V + rv[None, :], mask=ok[:, None], other=0)
            S = tl.dot(qT, (do * from_start[:, None]).to(do.dtype), S)
            wT = tl.load(w + row[None, :] * K + rk[:, None], mask=ok[None, :], other=0)
            S -= tl.dot(wT, new)
        else:
            ww = tl.load(w + row[:, None] * K + rk[None, :], mask=ok[:, None], other=0)
            new -= tl.dot(ww, half)
            kT = tl.load(k + row[None, :] * K + rk[:, None], mask=ok[None, :], other=0)
            S = tl.dot(kT, (new * to_end[:, None]).to(kT.dtype), S)
        tl.store(news + row[:, None] * V + rv[None, :], new.to(news.dtype.element_ty), mask=(t < T)[:, None])
    if last is not None:
        tl.store(last + place, S)


@triton.jit
def prepared_gradients(
    k,
    v,
    g,
    beta,
    n,
    lengths,
    inverse,
    new,
    dw,
    du,
    dk,
    dv,
    dg,
    dbeta,
    T,
    H,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """Backward of `prepare`: dv, dbeta, and what dk and dg of the sums of log decays gain."""
    c, bh, rt = tl.program_id(0), tl.program_id(1), tl.arange(0, C)
    b, h = (bh // H).to(tl.int64), bh % H
    NT = tl.num_programs(0)
    t = c * C + rt
    end = T if lengths is None else tl.load(lengths + b).to(tl.int32)
    row = (b * T + t) * H + h
    prow0 = (b * NT * C + c * C) * H + h
    ok, inside = (t < end)[:, None], (t < T)[:, None]
    G = tl.load(g + prow0 + rt * H)
    bt = tl.load(beta + row, mask=t < end, other=0).to(tl.float32)
    bt = tl.where(tl.abs(bt) < 1e-6, 1e-6, bt)
    before = rt[:, None] > rt[None, :]
    start = tl.exp2(G)
    if n is not None:
        num = tl.load(n + b * NT * C + t)
        before = before & (num[:, None] == tl.load(n + b * NT * C + t)[None, :])
        start = tl.where(num == 0, start, 0)
    XT = tl.load(inverse + row[None, :] * C + rt[:, None], mask=(t < T)[None, :], other=0)
    dA = tl.zeros((C, C), tl.float32)
    P = tl.zeros((C, C), tl.float32)
    of_beta = tl.zeros((C,), tl.float32)
    of_g = tl.zeros((C,), tl.float32)
    for i in range(V // BV):
        rv = i * BV + tl.arange(0, BV)
        place = row[:, None] * V + rv[None, :]
        dvb = tl.dot(XT, tl.load(du + place, mask=inside, other=0))
        taken = tl.load(new + place, mask=inside, other=0)
        dA = tl.dot(dvb.to(v.dtype.element_ty), tl.trans(taken), dA)
        of_beta += tl.sum(dvb * taken, 1)
        of_g += tl.sum(dvb * tl.load(v + place, mask=ok, other=0), 1)
        tl.store(dv + place, (dvb * bt[:, None]).to(dv.dtype.element_ty), mask=inside)
    for i in range(K // BK):
        rk = i * BK + tl.arange(0, BK)
        kk = tl.load(k + row[:, None] * K + rk[None, :], mask=ok, other=0)
        P = tl.dot(kk, tl.trans(kk), P)
    M = tl.where(before, -dA * tl.exp2(tl.where(before, G[:, None] - G[None, :], 0)), 0)
    of_g = of_beta - bt * of_g
    M = M * bt[:, None]
    of_g -= tl.sum(M * P, 0)
    M = M.to(k.dtype.element_ty)
    tl.debug_barrier()
    tl.store(inverse + row[:, None] * C + rt[None, :], M, mask=inside)
    tl.debug_barrier()
    MT = tl.load(inverse + row[None, :] * C + rt[:, None], mask=(t < T)[None, :], other=0)
    for i in range(K // BK):
        rk = i * BK + tl.arange(0, BK)
        place = row[:, None] * K + rk[None, :]
        kk = tl.load(k + place, mask=ok, other=0)
        dkb = tl.dot(XT, tl.load(dw + place, mask=inside, other=0))
        more = tl.load(dk + place, mask=inside, other=0) + dkb * (bt * start)[:, None]
        tl.store(dk + place, tl.dot(MT, kk, tl.dot(M, kk, more)).to(dk.dtype.element_ty), mask=inside)
    tl.store(dbeta + row, (of_beta / bt).to(dbeta.dtype.element_ty), mask=t < T)
    tl.store(dg + prow0 + rt * H, of_g)
