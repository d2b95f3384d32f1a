// Puts the kernels in the place of libggml-cpu's functions: in the tables by which that library calls its own functions
// (on Linux, a library without hidden symbols calls them by way of its global offset table), and in libggml-base's table
// what gives it memory. Nothing else in the process is touched, and nothing outside these libraries calls the kernels.

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <iterator>

#include "kernels.h"

namespace kernels {

bool enabled = false;

namespace {

struct Function {
    const char * name;
    void * kernel;
    void ** original;  // null where the kernel calls the function itself
};

const Function FUNCTIONS[] = {
    {"ggml_gemm_q4_0_8x8_q8_0", reinterpret_cast<void *>(serving_q4_0_rows), reinterpret_cast<void **>(&original_q4_0_rows)},
    {"ggml_gemv_q4_0_8x8_q8_0", reinterpret_cast<void *>(serving_q4_0_row), reinterpret_cast<void **>(&original_q4_0_row)},
    {"ggml_gemm_q4_K_8x8_q8_K", reinterpret_cast<void *>(serving_q4_k_rows), reinterpret_cast<void **>(&original_q4_k_rows)},
    {"ggml_gemv_q4_K_8x8_q8_K", reinterpret_cast<void *>(serving_q4_k_row), reinterpret_cast<void **>(&original_q4_k_row)},
    {"llamafile_sgemm", reinterpret_cast<void *>(serving_product), reinterpret_cast<void **>(&original_product)},
    {"ggml_compute_forward_flash_attn_ext", reinterpret_cast<void *>(serving_attention), reinterpret_cast<void **>(&original_attention)},
    {"ggml_compute_forward_mul_mat_tiled", reinterpret_cast<void *>(serving_tiled), reinterpret_cast<void **>(&original_tiled)},
    {"ggml_cpu_extra_compute_forward", reinterpret_cast<void *>(serving_operation), reinterpret_cast<void **>(&original_operation)},
};
const Function GIVES_MEMORY = {"posix_memalign", reinterpret_cast<void *>(serving_memalign), nullptr};

// The parts of a loaded library's dynamic section that are read here.
struct Dynamic {
    const Elf64_Sym * symbols = nullptr;
    const char * names = nullptr;
    const Elf64_Rela * calls = nullptr;
    size_t calls_bytes = 0;
    const Elf64_Rela * others = nullptr;
    size_t others_bytes = 0;

    explicit Dynamic(const link_map * library) {
        const auto address = [&](const Elf64_Dyn * entry) {
            const Elf64_Addr value = entry->d_un.d_ptr;  // glibc has made it absolute; other C libraries do not
            return value < library->l_addr ? value + library->l_addr : value;
        };
        for (const Elf64_Dyn * entry = library->l_ld; entry->d_tag != DT_NULL; entry++) {
            switch (entry->d_tag) {
                case DT_SYMTAB: symbols = reinterpret_cast<const Elf64_Sym *>(address(entry)); break;
                case DT_STRTAB: names = reinterpret_cast<const char *>(address(entry)); break;
                case DT_JMPREL: calls = reinterpret_cast<const Elf64_Rela *>(address(entry)); break;
                case DT_PLTRELSZ: calls_bytes = entry->d_un.d_val; break;
                case DT_RELA: others = reinterpret_cast<const Elf64_Rela *>(address(entry)); break;
                case DT_RELASZ: others_bytes = entry->d_un.d_val; break;
                default: break;
            }
        }
    }
};

bool write_pointer(void ** place, void * value) {
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    void * start = reinterpret_cast<void *>(reinterpret_cast<uintptr_t>(place) / page * page);
    if (mprotect(start, page, PROT_READ | PROT_WRITE) != 0) {
        return false;
    }
    *place = value;
    return true;
}

int redirect(const link_map * library, const Dynamic & dynamic, const Elf64_Rela * table, size_t bytes, const Function & function) {
    int found = 0;
    for (const Elf64_Rela * entry = table; entry < table + bytes / sizeof *table; entry++) {
        const auto type = ELF64_R_TYPE(entry->r_info);
        if (type != R_X86_64_JUMP_SLOT && type != R_X86_64_GLOB_DAT) {
            continue;
        }
        const Elf64_Sym & symbol = dynamic.symbols[ELF64_R_SYM(entry->r_info)];
        if (std::strcmp(dynamic.names + symbol.st_name, function.name) == 0) {
            found += write_pointer(reinterpret_cast<void **>(library->l_addr + entry->r_offset), function.kernel);
        }
    }
    return found;
}

// A library that is loaded already, by the path that it was loaded from; null where there is none.
void * loaded(const char * path) { return dlopen(path, RTLD_NOLOAD | RTLD_NOW); }

const link_map * facts_of(void * library) {
    link_map * facts = nullptr;
    return library != nullptr && dlinfo(library, RTLD_DI_LINKMAP, &facts) == 0 ? facts : nullptr;
}

// The loaded library that has the function.
void * library_of(const void * function) {
    Dl_info info;
    return function != nullptr && dladdr(function, &info) != 0 ? loaded(info.dli_fname) : nullptr;
}

bool take_over(const link_map * library, const Function & function) {
    const Dynamic dynamic(library);
    return redirect(library, dynamic, dynamic.calls, dynamic.calls_bytes, function) +
               redirect(library, dynamic, dynamic.others, dynamic.others_bytes, function) > 0;
}

}  // namespace
}  // namespace kernels

// Takes over all functions of the libggml-cpu at `path`, which is loaded already, and of the libggml-base that it calls. Returns
// how many of them were found and redirected; with fewer than all nothing is ever computed by the kernels.
extern "C" __attribute__((visibility("default"))) int serving_kernels_install(const char * path) {
    using namespace kernels;
    void * library = loaded(path);
    const link_map * cpu = facts_of(library);
    const link_map * base = cpu != nullptr ? facts_of(library_of(dlsym(library, "ggml_aligned_malloc"))) : nullptr;
    if (base == nullptr) {
        return 0;
    }
    for (const Function & function : FUNCTIONS) {
        *function.original = dlsym(library, function.name);
        if (*function.original == nullptr) {
            return 0;
        }
    }
    int functions = 0;
    for (const Function & function : FUNCTIONS) {
        functions += take_over(cpu, function);
    }
    functions += take_over(base, GIVES_MEMORY);
    enabled = functions == static_cast<int>(std::size(FUNCTIONS)) + 1;
    return functions;
}

// With false, libggml-cpu's own functions compute again. Not while anything is computed.
extern "C" __attribute__((visibility("default"))) void serving_kernels_enable(bool on) { kernels::enabled = on; }
