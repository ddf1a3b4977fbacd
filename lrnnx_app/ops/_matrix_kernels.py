"""Kernels in Triton of the scan with matrices as states, in chunks of C steps; `_matrix_gpu` starts them.

    steps     0 .. 63 | 64 .. 127 |         chunks of C = 64
    states            h           h         the state before each, by one walk over time
    outputs   ▙       | ▙         |         all chunks side by side: from that state and their own steps

A state is (K, V) here. Decays are powers of 2, summed from the start of each chunk: g[t] is the sum up to
step t, and a step s counts in a later step t by 2^(g[t] − g[s]). With a decay for each channel (WIDE) that is
a product of q·2^(g[t] − m) and k·2^(m − g[s]) for m = g in the middle of SUB steps. Neither overflows, since
a step decays to e⁻¹⁰ at most. `n` numbers the sequences that start in a chunk.

No product is transposed in registers: as an operand, Triton 3.4 to 3.7 read that wrongly on Hopper.
"""

import triton
import triton.language as tl


@triton.jit
def sums(
    x, y, lengths, reset, T, D, C: tl.constexpr, BD: tl.constexpr, REVERSE: tl.constexpr, LEAST: tl.constexpr
):
    """Sums of log2 decays in chunks, (B, T, D) to (B, Tp, D); REVERSE: of gradients, back to (B, T, D)."""
    c, d, b = tl.program_id(0), tl.program_id(1) * BD + tl.arange(0, BD), tl.program_id(2).to(tl.int64)
    t, Tp = c * C + tl.arange(0, C), tl.num_programs(0) * C
    end = T if lengths is None else tl.load(lengths + b).to(tl.int32)
    outer = (b * T + t[:, None]) * D + d[None, :]
    inner = (b * Tp + t[:, None]) * D + d[None, :]
    ok = (t[:, None] < end) & (d[None, :] < D)
    if REVERSE:
        z = tl.load(x + inner, mask=d[None, :] < D, other=0)
        z = tl.cumsum(z, 0, reverse=True)
        if reset is not None:
            ok = ok & (tl.load(reset + b * T + t, mask=t < end, other=1) == 0)[:, None]
        tl.store(
            y + outer, tl.where(ok, z, 0).to(y.dtype.element_ty), mask=(t[:, None] < T) & (d[None, :] < D)
        )
    else:
        z = tl.load(x + outer, mask=ok, other=0).to(tl.float32)
        z = tl.where(ok, tl.maximum(z, LEAST), 0) * 1.4426950408889634
        tl.store(y + inner, tl.cumsum(z, 0), mask=d[None, :] < D)


@triton.jit
def states(
    k,
    v,
    g,
    n,
    lengths,
    first,
    hs,
    last,
    T,
    H,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    WIDE: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """The state before each chunk; REVERSE: from k = q, v = dy the gradient of that after each chunk."""
    bh = tl.program_id(2)
    b, h = (bh // H).to(tl.int64), bh % H
    rk, rv, rt = (
        tl.program_id(0) * BK + tl.arange(0, BK),
        tl.program_id(1) * BV + tl.arange(0, BV),
        tl.arange(0, C),
    )
    NT = tl.cdiv(T, C)
    end = T if lengths is None else tl.load(lengths + b).to(tl.int32)
    S = tl.zeros((BK, BV), tl.float32)
    place = (bh.to(tl.int64) * V + rv[None, :]) * K + rk[:, None]
    if first is not None:
        S += tl.load(first + place).to(tl.float32)
    for i in range(NT):
        c = NT - 1 - i if REVERSE else i
        t = c * C + rt
        tl.store(
            hs + ((bh.to(tl.int64) * NT + c) * K + rk[:, None]) * V + rv[None, :], S.to(hs.dtype.element_ty)
        )
        row, prow = (b * T + t) * H + h, (b * NT * C + t) * H + h
        p_last = (b * NT * C + c * C + C - 1) * H + h
        kT = tl.load(k + row[None, :] * K + rk[:, None], mask=t[None, :] < end, other=0)
        x = tl.load(v + row[:, None] * V + rv[None, :], mask=t[:, None] < end, other=0)
        if WIDE:
            G = tl.load(g + prow[None, :] * K + rk[:, None])
            Gl = tl.load(g + p_last * K + rk)
            w = tl.exp2(G) if REVERSE else tl.exp2(Gl[:, None] - G)
        else:
            G = tl.load(g + prow)
            Gl = tl.load(g + p_last)
            w = tl.exp2(G) if REVERSE else tl.exp2(Gl - G)
        through = tl.exp2(Gl)
        if n is not None:
            num, n_last = tl.load(n + b * NT * C + t), tl.load(n + b * NT * C + c * C + C - 1)
            used = num == (0 if REVERSE else n_last)
            w = tl.where(used[None, :] if WIDE else used, w, 0)
            through = tl.where(n_last == 0, through, 0)
        if WIDE:
            S = S * through[:, None]
            kT = (kT * w).to(kT.dtype)
        else:
            S = S * through
            x = (x * w[:, None]).to(x.dtype)
        S = tl.dot(kT, x, S)
    if last is not None:
        tl.store(last + place, S)


@triton.jit
def scores(
    A, q, kT, g, prow0, H, rk, K: tl.constexpr, C: tl.constexpr, WIDE: tl.constexpr, SUB: tl.constexpr
):
    """A + q·k of all pairs of steps in a chunk; WIDE: each weighted by its decay."""
    if not WIDE:
        return tl.dot(q, kT, A)
    rt = tl.arange(0, C)
    G = tl.load(g + (prow0 + rt[:, None] * H) * K + rk[None, :])
    GT = tl.load(g + (prow0 + rt[None, :] * H) * K + rk[:, None])
    M = tl.load(g + (prow0 + (rt // SUB * SUB + SUB // 2)[:, None] * H) * K + rk[None, :])
    Q = (q * tl.exp2(G - M)).to(q.dtype)
    for i in range(C // SUB):
        m = tl.load(g + (prow0 + (i * SUB + SUB // 2) * H) * K + rk)
        ki = (kT * tl.exp2(tl.minimum(m[:, None] - GT, 116.0))).to(kT.dtype)
        A = tl.where((rt // SUB == i)[:, None], A + tl.dot(Q, ki), A)
    return A


@triton.jit
def scores_back(
    A, k, qT, g, prow0, H, rk, K: tl.constexpr, C: tl.constexpr, WIDE: tl.constexpr, SUB: tl.constexpr
):
    """The transpose of what `scores` gives."""
    if not WIDE:
        return tl.dot(k, qT, A)
    rt = tl.arange(0, C)
    G = tl.load(g + (prow0 + rt[:, None] * H) * K + rk[None, :])
    GT = tl.load(g + (prow0 + rt[None, :] * H) * K + rk[:, None])
    M = tl.load(g + (prow0 + (rt // SUB * SUB + SUB // 2)[None, :] * H) * K + rk[:, None])
    Q = (qT * tl.exp2(GT - M)).to(qT.dtype)
    for i in range(C // SUB):
        m = tl.load(g + (prow0 + (i * SUB + SUB // 2) * H) * K + rk)
        ki = (k * tl.exp2(tl.minimum(m[None, :] - G, 116.0))).to(k.dtype)
        A = tl.where((rt // SUB == i)[None, :], A + tl.dot(ki, Q), A)
    return A


@triton.jit
def outputs(
    q,
    k,
    v,
    g,
    n,
    lengths,
    hs,
    y,
    T,
    H,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    WIDE: tl.constexpr,
    SUB: tl.constexpr,
    BACK: tl.constexpr,
):
    """y from v and the states before chunks; BACK: dv from dy, as v, and the gradients after chunks."""
    c, bh, rt = tl.program_id(1), tl.program_id(2), tl.arange(0, C)
    b, h = (bh // H).to(tl.int64), bh % H
    NT = tl.num_programs(1)
    rv = tl.program_id(0) * BV + tl.arange(0, BV)
    t = c * C + rt
    end = T if lengths is None else tl.load(lengths + b).to(tl.int32)
    row = (b * T + t) * H + h
    prow0 = (b * NT * C + c * C) * H + h
    ok = t < end
    acc = tl.zeros((C, BV), tl.float32)
    A = tl.zeros((C, C), tl.float32)
    seen = rt[:, None] <= rt[None, :] if BACK else rt[:, None] >= rt[None, :]
    reached = ok
    if n is not None:
        num, n_last = tl.load(n + b * NT * C + t), tl.load(n + b * NT * C + c * C + C - 1)
        seen = seen & (num[:, None] == tl.load(n + b * NT * C + t)[None, :])
        reached = num == (n_last if BACK else 0)
    for i in range(K // BK):
        rk = i * BK + tl.arange(0, BK)
        x = tl.load((k if BACK else q) + row[:, None] * K + rk[None, :], mask=ok[:, None], other=0)
        xT = tl.load((q if BACK else k) + row[None, :] * K + rk[:, None], mask=ok[None, :], other=0)
        if BACK:
            A = scores_back(A, x, xT, g, prow0, H, rk, K, C, WIDE, SUB)
        else:
            A = scores(A, x, xT, g, prow0, H, rk, K, C, WIDE, SUB)
        if hs is not None:
            hh = tl.load(hs + ((bh.to(tl.int64) * NT + c) * K + rk[:, None]) * V + rv[None, :])
            if WIDE:
                G = tl.load(g + (prow0 + rt[:, None] * H) * K + rk[None, :])
                if BACK:
                    G = tl.load(g + (prow0 + (C - 1) * H) * K + rk)[None, :] - G
                x = (x * tl.exp2(G)).to(x.dtype)
            acc = tl.dot(x, hh, acc)
    if not WIDE:
        G = tl.load(g + prow0 + rt * H)
        passed = G[None, :] - G[:, None] if BACK else G[:, None] - G[None, :]
        A = A * tl.exp2(tl.where(seen, passed, 0))
        w = tl.exp2(tl.load(g + prow0 + (C - 1) * H) - G) if BACK else tl.exp2(G)
        acc = acc * w[:, None]
    if n is not None:
        acc = tl.where(reached[:, None], acc, 0)
    A = tl.where(seen, A, 0).to(v.dtype.element_ty)
    z = tl.load(v + row[:, None] * V + rv[None, :], mask=ok[:, None], other=0)
    acc = tl.dot(A, z, acc)
    tl.store(y + row[:, None] * V + rv[None, :], acc.to(y.dtype.element_ty), mask=(t < T)[:, None])


@triton.jit
def products(x, z, row, ok, V: tl.constexpr, C: tl.constexpr, BV: tl.constexpr):
    """x·z for all pairs of steps of a chunk, (C, C)."""
    A = tl.zeros((C, C), tl.float32)
    for i in range(V // BV):
        rv = i * BV + tl.arange(0, BV)
        xx = tl.load(x + row[:, None] * V + rv[None, :], mask=ok[:, None], other=0)
        zT = tl.load(z + row[None, :] * V + rv[:, None], mask=ok[None, :], other=0)
        A = tl.dot(xx, zT, A)
    return A


@triton.jit
def gradients(
    q,
    k,
    v,
    g,
    n,
    lengths,
    dy,
    hs,
    dhs,
    du,
    dw,
    dq,
    dk,
    dg,
    T,
    H,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    WIDE: tl.constexpr,
    SUB: tl.constexpr,
):
    """dq, dk, and the gradient of the sums of log decays (parts of BK channels if not WIDE)."""
    c, bh, rt = tl.program_id(1), tl.program_id(2), tl.arange(0, C)
    b, h = (bh // H).to(tl.int64), bh % H
    NT = tl.num_programs(1)
    rk = tl.program_id(0) * BK + tl.arange(0, BK)
    t = c * C + rt
    end = T if lengths is None else tl.load(lengths + b).to(tl.int32)
    row = (b * T + t) * H + h
    prow0 = (b * NT * C + c * C) * H + h
    ok = t < end
    dA = tl.zeros((C, C), tl.float32)
    DQ = tl.zeros((C, BK), tl.float32)
    DK = tl.zeros((C, BK), tl.float32)
    both = tl.zeros((BK,), tl.float32)
    DW = tl.zeros((C, BK), tl.float32)
    for i in range(V // BV):
        rv = i * BV + tl.arange(0, BV)
        do = tl.load(dy + row[:, None] * V + rv[None, :], mask=ok[:, None], other=0)
        vv = tl.load(v + row[:, None] * V + rv[None, :], mask=ok[:, None], other=0)
        place = ((bh.to(tl.int64) * NT + c) * K + rk[None, :]) * V + rv[:, None]
        hT, dhT = tl.load(hs + place), tl.load(dhs + place)
        dA = tl.dot(do, tl.trans(vv), dA)
        DQ = tl.dot(do, hT, DQ)
        DK = tl.dot(vv, dhT, DK)
        both += tl.sum(hT.to(tl.float32) * dhT.to(tl.float32), 0)
        if du is not None:
            DW = tl.dot(tl.load(du + row[:, None] * V + rv[None, :], mask=ok[:, None], other=0), hT, DW)
    qq = tl.load(q + row[:, None] * K + rk[None, :], mask=ok[:, None], other=0)
    kk = tl.load(k + row[:, None] * K + rk[None, :], mask=ok[:, None], other=0)
    seen = rt[:, None] >= rt[None, :]
    seen_by = rt[:, None] <= rt[None, :]
    if WIDE:
        G = tl.load(g + (prow0 + rt[:, None] * H) * K + rk[None, :])
        Gl = tl.load(g + (prow0 + (C - 1) * H) * K + rk)
        from_start, to_end = tl.exp2(G), tl.exp2(Gl[None, :] - G)
    else:
        G = tl.load(g + prow0 + rt * H)
        Gl = tl.load(g + prow0 + (C - 1) * H)
        from_start, to_end = tl.exp2(G)[:, None], tl.exp2(Gl - G)[:, None]
    through = tl.exp2(Gl)
    if n is not None:
        num, n_last = tl.load(n + b * NT * C + t), tl.load(n + b * NT * C + c * C + C - 1)
        same = num[:, None] == tl.load(n + b * NT * C + t)[None, :]
        seen, seen_by = seen & same, seen_by & same
        from_start = tl.where((num == 0)[:, None], from_start, 0)
        to_end = tl.where((num == n_last)[:, None], to_end, 0)
        through = tl.where(n_last == 0, through, 0)
    DQ = DQ * from_start
    DK = DK * to_end
    at_end = through * both + tl.sum(DK * kk, 0) if WIDE else through * tl.sum(both) + tl.sum(DK * kk)
    if WIDE:
        dA = tl.where(seen, dA, 0).to(qq.dtype)
        dAT = tl.where(seen_by, products(v, dy, row, ok, V, C, BV), 0).to(qq.dtype)
        mid = (rt // SUB * SUB + SUB // 2)[:, None]
        E = tl.exp2(G - tl.load(g + (prow0 + mid * H) * K + rk[None, :]))
        Q = (qq * E).to(qq.dtype)
        inner = tl.zeros((C, BK), tl.float32)
        for i in range(C // SUB):
            m = tl.load(g + (prow0 + (i * SUB + SUB // 2) * H) * K + rk)
            e = tl.exp2(tl.minimum(m[None, :] - G, 116.0))
            di = tl.where((rt // SUB == i)[:, None], dA, 0)
            inner = tl.dot(di, (kk * e).to(kk.dtype), inner)
            DK += tl.dot(tl.where((rt // SUB == i)[None, :], dAT, 0), Q) * e
        DQ += inner * E
    else:
        dA = tl.where(seen, dA * tl.exp2(tl.where(seen, G[:, None] - G[None, :], 0)), 0).to(qq.dtype)
        DQ = tl.dot(dA, kk, DQ)
        dAT = products(v, dy, row, ok, V, C, BV)
        dAT = tl.where(seen_by, dAT * tl.exp2(tl.where(seen_by, G[None, :] - G[:, None], 0)), 0).to(qq.dtype)
        DK = tl.dot(dAT, qq, DK)
    inside = (t < T)[:, None]
    if du is not None:
        tl.store(dw + row[:, None] * K + rk[None, :], (-DW).to(dw.dtype.element_ty), mask=inside)
    tl.store(dq + row[:, None] * K + rk[None, :], DQ.to(dq.dtype.element_ty), mask=inside)
    tl.store(dk + row[:, None] * K + rk[None, :], DK.to(dk.dtype.element_ty), mask=inside)
    of_g = qq * DQ - kk * DK
    if WIDE:
        of_g += tl.where((rt == C - 1)[:, None], at_end[None, :], 0)
        tl.store(dg + (prow0 + rt[:, None] * H) * K + rk[None, :], of_g)
    else:
        of_g = tl.sum(of_g, 1) + tl.where(rt == C - 1, at_end, 0)
        part = tl.program_id(0).to(tl.int64) * (tl.num_programs(2) * NT * C)
        tl.store(dg + part + prow0 + rt * H, of_g)
