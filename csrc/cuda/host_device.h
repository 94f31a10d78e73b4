// Functions of both sides, in headers that plain C++ reads too.
#pragma once

#ifdef __CUDACC__
#define CROSSMODAL_HOST_DEVICE __host__ __device__
#else
#define CROSSMODAL_HOST_DEVICE
#endif
