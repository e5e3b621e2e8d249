/* A libcuda for tests of `dcomm doctor`: FAKE_GPUS devices whose memory is the host's. FAKE_CORRUPT=1: a copy between
 * devices with peer access delivers another byte. Where NVIDIA's header is, the compiler compares every prototype. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if __has_include(<cuda.h>)
#include <cuda.h>
#else
typedef int CUresult, CUdevice, CUdevice_attribute;
typedef struct CUctx_st* CUcontext;
typedef unsigned long long CUdeviceptr;
#define CUDAAPI
#endif

static int num_gpus(void) {
  const char* text = getenv("FAKE_GPUS");
  return text == NULL ? 1 : atoi(text);
}
static char contexts[64];  /* their addresses count */
static char access_enabled[64][64];
static __thread CUcontext current;

static int device_of(CUcontext context) { return (int)((char*)context - contexts); }

CUresult CUDAAPI cuInit(unsigned int flags) { return (CUresult)(flags != 0 ? 1 : num_gpus() == 0 ? 100 : 0); }
CUresult CUDAAPI cuGetErrorName(CUresult error, const char** text) {
  (void)error;
  *text = "CUDA_ERROR_FAKE";
  return (CUresult)0;
}
CUresult CUDAAPI cuDriverGetVersion(int* version) {
  *version = 13010;
  return (CUresult)0;
}
CUresult CUDAAPI cuDeviceGetCount(int* count) {
  *count = num_gpus();
  return (CUresult)0;
}
CUresult CUDAAPI cuDeviceGet(CUdevice* device, int ordinal) {
  *device = ordinal;
  return (CUresult)0;
}
CUresult CUDAAPI cuDeviceGetName(char* name, int length, CUdevice device) {
  snprintf(name, (size_t)length, "Fake GPU %d", device);
  return (CUresult)0;
}
CUresult CUDAAPI cuDeviceTotalMem_v2(size_t* nbytes, CUdevice device) {
  *nbytes = ((size_t)80 << 30) + (size_t)device;
  return (CUresult)0;
}
CUresult CUDAAPI cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  (void)device;
  *value = (int)attribute == 75 ? 9 : (int)attribute == 76 ? 0 : -1;
  return (CUresult)0;
}
CUresult CUDAAPI cuDeviceCanAccessPeer(int* can, CUdevice device, CUdevice peer) {
  *can = device != peer;
  return (CUresult)0;
}
CUresult CUDAAPI cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  *context = (CUcontext)(void*)&contexts[device];
  return (CUresult)0;
}
CUresult CUDAAPI cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  (void)device;
  return (CUresult)0;
}
CUresult CUDAAPI cuCtxSetCurrent(CUcontext context) {
  current = context;
  return (CUresult)0;
}
CUresult CUDAAPI cuCtxSynchronize(void) { return (CUresult)0; }
CUresult CUDAAPI cuCtxEnablePeerAccess(CUcontext peer, unsigned int flags) {
  char* enabled = &access_enabled[device_of(current)][device_of(peer)];
  if (flags != 0 || *enabled) return (CUresult)704;
  *enabled = 1;
  return (CUresult)0;
}
CUresult CUDAAPI cuMemAlloc_v2(CUdeviceptr* address, size_t nbytes) {
  *address = (CUdeviceptr)(uintptr_t)malloc(nbytes); /* a large block: an address above 32 bits */
  return (CUresult)0;
}
CUresult CUDAAPI cuMemFree_v2(CUdeviceptr address) {
  free((void*)(uintptr_t)address);
  return (CUresult)0;
}
CUresult CUDAAPI cuMemcpyHtoD_v2(CUdeviceptr target, const void* source, size_t nbytes) {
  memcpy((void*)(uintptr_t)target, source, nbytes);
  return (CUresult)0;
}
CUresult CUDAAPI cuMemcpyDtoH_v2(void* target, CUdeviceptr source, size_t nbytes) {
  memcpy(target, (void*)(uintptr_t)source, nbytes);
  return (CUresult)0;
}
CUresult CUDAAPI cuMemcpyPeer(CUdeviceptr target, CUcontext there, CUdeviceptr source, CUcontext here, size_t nbytes) {
  if (here == there) return (CUresult)1;
  memcpy((void*)(uintptr_t)target, (void*)(uintptr_t)source, nbytes);
  if (getenv("FAKE_CORRUPT") != NULL && access_enabled[device_of(here)][device_of(there)])
    ((char*)(uintptr_t)target)[nbytes - 1] ^= 1;
  return (CUresult)0;
}
