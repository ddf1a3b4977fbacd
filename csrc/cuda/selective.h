// The selective scan as its kernels see it. How it is mapped to a GPU is told in selective_scan.cuh.
#pragma once
#include <cstdint>

namespace lrnnx::cuda {

constexpr int kParts = 4;        // lanes that share a channel
constexpr int kHeld = 4;         // numbers of the state that a lane holds: 4 real states, or 2 complex ones
constexpr int kSlice = 16;       // numbers of a channel that are walked at once; more states take several slices
constexpr int kBlockOf = 64;     // channels are padded to this many within a group, in scratch memory
constexpr int kStepsKept = 8;    // the backward pass starts from a state kept every so many steps

// A tensor that is read along time, by strides in bytes: 0 where it is the same at all steps.
struct Along {
  const char* data;
  int64_t batch;
  int time;
};

struct Selective {
  Along u, delta, z, B, C, grad;                         // z may be null
  const float *A, *D, *bias, *dt, *first, *grad_last;    // all but A and grad_last may be null
  const int64_t* lengths;
  const bool* reset;
  void *y, *du, *ddelta, *dz, *dB, *dC;
  float *last, *dA, *dD, *dbias, *ddt, *dfirst;
  float* saved;                // states before steps 0, 8, …: (B, ⌈T/8⌉, slices, 16, padded)
  float *ahead, *behind;       // decay and end state of segments, forward and back: (B, segments, slices, 2, 16, padded)
  float *part_B, *part_C;      // sums over the channels of a block: (blocks, B, rows, slices · 16)
  float* part_dt;              // likewise (blocks, B, T)
  float* part_channel;         // sums over a segment: (B · segments, slices · 16 + 2, padded)
  float* carry;                // of several slices, the state or its gradient: (B · segments, slices · 16, padded)
  int batch, time, channels, groups, states, slices;
  int share, padded;           // channels of a group; of all groups, each padded
  int segments, length;        // time is cut into segments of this many steps, a multiple of 32
  bool softplus;
  bool pairs, vectors, quads;  // pairs and 16 bytes of channels, 4 states of B and C can be read as a whole
};

}  // namespace lrnnx::cuda
