// Messages between ranks that have a GPU each, over NCCL.
#pragma once

#include <memory>
#include <string>

#include "parallel/communicator.h"

namespace fathom {

// The host's ranks, each with the GPU `device`, which becomes the calling thread's; all of them call it together. The
// host (join_mpi()) carries NCCL's ids and the words by which messages are matched (parallel/ordered_transport.h), and
// must live longer. Used by one thread. Error where the program was built without NCCL.
//
// Memory of messages may lie on the GPU, and is read and written there, or on the host, from where it is copied in
// pieces. NCCL knows nothing of other streams: what is sent has been computed (its stream synchronized), and nothing
// that is queued uses what is received, before send() and receive(). Until all messages are done the caller neither
// allocates nor frees memory of the GPU nor waits for all of it (cudaMalloc, cudaFree, cudaDeviceSynchronize): such
// calls may wait for messages that wait for another rank's caller. So may a stream that shares a hardware queue with a
// message: processes are to be started with CUDA_DEVICE_MAX_CONNECTIONS=32.
//
// With memory of the GPU: send(), receive(), Exchange, broadcast(), and all_to_all() where no member has anything for
// itself, which the host would copy. reduce_scatter(), all_gather(), all_reduce(), sum_over() and gather_texts()
// compute or copy on the host and take the host's memory alone.
//
// Where a rank cannot go on it calls fail() before that memory goes, whose end would wait for messages that never come.
//
// Between every two ranks there are two NCCL communicators, made at once: for the ranks of few machines.
std::unique_ptr<Communicator> join_nccl(Communicator& host, int device);

// "NCCL 2.28.9", or that NCCL is not built.
std::string nccl_build_text();

}  // namespace fathom
