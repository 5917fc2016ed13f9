/* Stands in for libcuda.so.1: one device of compute capability 9.0 with 227 KB of shared memory for a block, and one
   kernel of parameters of 8, 8, 4, 8 and 8 bytes. It prints what changes the driver's state. It launches nothing. */
#include <stddef.h>
#include <stdio.h>

static const size_t bytes[] = {8, 8, 4, 8, 8};

int cuInit(unsigned flags) { setbuf(stdout, NULL); return flags != 0; }
int cuDeviceGetCount(int* count) { *count = 1; return 0; }
int cuDeviceGet(int* device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == 75 ? 9 : attribute == 76 ? 0 : attribute == 97 ? 227 * 1024 : -1;
  return device != 0;
}
int cuDevicePrimaryCtxRetain(void** context, int device) { *context = (void*)1; return device != 0; }
int cuCtxPushCurrent_v2(void* context) { printf("push\n"); return context != (void*)1; }
int cuCtxPopCurrent_v2(void** context) { printf("pop\n"); *context = (void*)1; return 0; }
int cuModuleLoadData(void** module, const void* image) { printf("load %.3s\n", (const char*)image + 1); *module = (void*)2; return 0; }
int cuModuleUnload(void* module) { printf("unload\n"); return module != (void*)2; }
int cuModuleGetFunction(void** function, void* module, const char* name) { printf("function %s\n", name); *function = (void*)3; return module != (void*)2; }
int cuFuncGetAttribute(int* value, int attribute, void* function) { *value = attribute == 1 ? 1024 : -1; return function != (void*)3; }
int cuFuncSetAttribute(void* function, int attribute, int value) { printf("set %d %d\n", attribute, value); return function != (void*)3; }
int cuLaunchKernel(void) { return 999; }
int cuGetErrorString(int error, const char** text) { (void)error; *text = "a driver's words"; return 0; }
int cuFuncGetParamInfo(void* function, size_t index, size_t* offset, size_t* size) {
  if (function != (void*)3 || index >= sizeof bytes / sizeof *bytes) return 1;
  *offset = 0; *size = bytes[index];
  return 0;
}
