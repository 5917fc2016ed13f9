/* A program without Python and without C++: loads the library beside libtorch and blends four numbers through torch's
 * C interface. Then hands it an undefined tensor, which must be an error. Usage: beside_libtorch <library>. Prints
 * "6 12 18 24". */
#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef uint64_t Value; /* StableIValue */
typedef void* Handle;

extern int32_t aoti_torch_create_tensor_from_blob(void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides,
                                                  int64_t offset, int32_t dtype, int32_t device_type,
                                                  int32_t device_index, Handle* made);
extern int32_t aoti_torch_dtype_float32(void);
extern int32_t aoti_torch_device_type_cpu(void);
extern int32_t aoti_torch_get_data_ptr(Handle tensor, void** data);
extern int32_t aoti_torch_new_uninitialized_tensor(Handle* made);
extern void aoti_torch_grad_mode_set_enabled(bool enabled);
extern uint64_t aoti_torch_abi_version(void);
extern int32_t torch_new_list_reserve_size(uint64_t size, Handle* made);
extern int32_t torch_list_push_back(Handle list, Value value);
extern int32_t torch_call_dispatcher(const char* op, const char* overload, Value* stack, uint64_t build_version);

static Handle tensor(float* data, int64_t length) {
  const int64_t one = 1;
  Handle made = NULL;
  aoti_torch_create_tensor_from_blob(data, 1, &length, &one, 0, aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(),
                                     0, &made);
  return made;
}

static Handle undefined(void) {
  Handle made = NULL;
  aoti_torch_new_uninitialized_tensor(&made);
  return made;
}

static Value list(int count, const Value* values) {
  Handle made = NULL;
  torch_new_list_reserve_size(count, &made);
  for (int i = 0; i < count; ++i) torch_list_push_back(made, values[i]);
  return (Value)made;
}

int main(int argc, char** argv) {
  void* library = argc == 2 ? dlopen(argv[1], RTLD_NOW) : NULL;
  if (!library) return fprintf(stderr, "%s\n", dlerror()), 1;
  const char* (*build_info)(void) = (const char* (*)(void))dlsym(library, "esper_build_info");
  if (!build_info) return fprintf(stderr, "%s\n", dlerror()), 2;
  fprintf(stderr, "%s\n", build_info());

  float host[] = {1, 2, 3, 4}, seed[] = {10, 20, 30, 40}, alpha[] = {0.5f};
  const Value seeds[] = {(Value)tensor(seed, 4)}, span[] = {0, 4};
  aoti_torch_grad_mode_set_enabled(false);
  /* host, seeds, alphas, spans, channel_dim, convex */
  Value stack[] = {(Value)tensor(host, 4), list(1, seeds), (Value)tensor(alpha, 1), list(2, span), 0, false};
  if (torch_call_dispatcher("esper_native::blend", "", stack, aoti_torch_abi_version()) != 0) return 3;
  void* out = NULL;
  if (aoti_torch_get_data_ptr((Handle)stack[0], &out) != 0) return 4;
  for (int i = 0; i < 3; ++i) { /* host, a seed, alphas in turn */
    const Value some[] = {(Value)(i == 1 ? undefined() : tensor(seed, 4))};
    Value wrong[] = {(Value)(i == 0 ? undefined() : tensor(host, 4)), list(1, some),
                     (Value)(i == 2 ? undefined() : tensor(alpha, 1)), list(2, span), 0, false};
    if (torch_call_dispatcher("esper_native::blend", "", wrong, aoti_torch_abi_version()) == 0) return 5;
  }
  for (int i = 0; i < 4; ++i) printf(i ? " %g" : "%g", ((float*)out)[i]);
  return puts(""), 0;
}
