// rheidae.h by onnxruntime's C API.

#include "rheidae.h"

#if __has_include(<onnxruntime_c_api.h>)
#include <onnxruntime_c_api.h>
#else
#include "onnxruntime_api.h"
#endif

#include <algorithm>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// Intermediate results of a block, some hundred numbers per cell, stay in the cache.
constexpr size_t BLOCK = 256;

constexpr size_t OUTPUTS = 6;
constexpr const char *OUTPUT_NAMES[OUTPUTS] = {"F_final", "growth_rate", "has_crossing", "transition", "std", "outside"};
constexpr size_t OUTPUT_COLUMNS[OUTPUTS] = {RHEIDAE_COLUMNS, 1, 3, 72, RHEIDAE_COLUMNS, 1};

thread_local std::string last_error;

const OrtApi *ort() {
    static const OrtApi *const api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (!api)
        throw std::runtime_error(std::string("onnxruntime ") + OrtGetApiBase()->GetVersionString() +
                                 " is too old: it has no C API of version " + std::to_string(ORT_API_VERSION));
    return api;
}

void check(OrtStatus *status) {
    if (!status) return;
    const std::string message = ort()->GetErrorMessage(status);
    ort()->ReleaseStatus(status);
    throw std::runtime_error(message);
}

// A pointer that its own function of the API releases.
template <class T> using Owned = std::unique_ptr<T, void (*)(T *)>;

template <class T> Owned<T> own(T *pointer, void (*release)(T *)) { return Owned<T>(pointer, release); }

// Errors end at the C interface.
template <class Work> int guarded(Work work) {
    try {
        work();
        return 0;
    } catch (const std::exception &error) {
        last_error = error.what();
    } catch (...) {
        last_error = "unknown error";
    }
    return 1;
}

} // namespace

struct rheidae_model {
    Owned<OrtEnv> env{nullptr, nullptr};
    Owned<OrtSession> session{nullptr, nullptr};
    Owned<OrtMemoryInfo> memory{nullptr, nullptr};
    size_t inputs = 1, outputs = 1;
    std::string metadata;

    rheidae_model(const char *path, int threads) {
        OrtEnv *new_env = nullptr;
        check(ort()->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "rheidae", &new_env));
        env = own(new_env, ort()->ReleaseEnv);

        OrtSessionOptions *new_options = nullptr;
        check(ort()->CreateSessionOptions(&new_options));
        const auto options = own(new_options, ort()->ReleaseSessionOptions);
        check(ort()->SetIntraOpNumThreads(options.get(), threads));

        OrtSession *new_session = nullptr;
        check(ort()->CreateSession(env.get(), path, options.get(), &new_session));
        session = own(new_session, ort()->ReleaseSession);
        check(ort()->SessionGetInputCount(session.get(), &inputs));
        check(ort()->SessionGetOutputCount(session.get(), &outputs));

        OrtMemoryInfo *new_memory = nullptr;
        check(ort()->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &new_memory));
        memory = own(new_memory, ort()->ReleaseMemoryInfo);
        read_metadata(path);
    }

    void read_metadata(const char *path) {
        OrtModelMetadata *found = nullptr;
        check(ort()->SessionGetModelMetadata(session.get(), &found));
        const auto owner = own(found, ort()->ReleaseModelMetadata);
        OrtAllocator *allocator = nullptr; // the default one, nobody's to release
        check(ort()->GetAllocatorWithDefaultOptions(&allocator));
        char *value = nullptr;
        check(ort()->ModelMetadataLookupCustomMetadataMap(found, allocator, "rheidae", &value));
        if (!value) throw std::runtime_error(std::string(path) + ": was not written by python -m rheidae.export");
        metadata = value;
        check(ort()->AllocatorFree(allocator, value));
    }

    Owned<OrtValue> tensor(double *data, size_t n, size_t columns) const {
        const int64_t shape[] = {static_cast<int64_t>(n), static_cast<int64_t>(columns)};
        OrtValue *value = nullptr;
        check(ort()->CreateTensorWithDataAsOrtValue(memory.get(), data, n * columns * sizeof(double), shape, 2,
                                                    ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, &value));
        return own(value, ort()->ReleaseValue);
    }

    // `into`: as many as outputs are wanted; those that are null are left out.
    void run_block(size_t n, const double *F_init, const double *F_box, double *const *into, size_t wanted) const {
        // Inputs are only read.
        const auto init = tensor(const_cast<double *>(F_init), n, RHEIDAE_COLUMNS);
        const auto box = tensor(const_cast<double *>(inputs == 2 ? F_box : F_init), n, RHEIDAE_COLUMNS);
        // The last operation may write before another has read F_init, where both are the same array.
        double own_output[BLOCK * RHEIDAE_COLUMNS];
        std::vector<Owned<OrtValue>> tensors;
        const char *names[OUTPUTS];
        OrtValue *values_out[OUTPUTS];
        for (size_t k = 0; k < wanted; ++k) {
            if (k > 0 && !into[k]) continue;
            names[tensors.size()] = OUTPUT_NAMES[k];
            tensors.push_back(tensor(k == 0 ? own_output : into[k], n, OUTPUT_COLUMNS[k]));
            values_out[tensors.size() - 1] = tensors.back().get();
        }
        const char *const input_names[] = {"F_init", "F_box"};
        const OrtValue *const values[] = {init.get(), box.get()};
        check(ort()->Run(session.get(), nullptr, input_names, values, inputs, names, tensors.size(), values_out));
        std::copy(own_output, own_output + n * RHEIDAE_COLUMNS, into[0]);
    }
};

extern "C" {

int rheidae_create(const char *path, int threads, rheidae_model **model) {
    *model = nullptr;
    return guarded([&] { *model = new rheidae_model(path, threads); });
}

int rheidae_needs_box3d(const rheidae_model *model) { return model->inputs == 2; }

const char *rheidae_metadata(const rheidae_model *model) { return model->metadata.c_str(); }

int rheidae_run(rheidae_model *model, size_t n, const double *F_init, const double *F_box, double *F_final) {
    return guarded([&] {
        if ((F_box != nullptr) != (model->inputs == 2))
            throw std::invalid_argument(F_box ? "this model computes what it needs: F_box has to be null"
                                              : "this model wants Box3D's answer: F_box is null");
        for (size_t start = 0; start < n; start += BLOCK) {
            const size_t first = start * RHEIDAE_COLUMNS;
            double *const into[] = {F_final + first};
            model->run_block(std::min(BLOCK, n - start), F_init + first, F_box ? F_box + first : nullptr, into, 1);
        }
    });
}

int rheidae_is_full(const rheidae_model *model) { return model->outputs == OUTPUTS; }

int rheidae_run_full(rheidae_model *model, size_t n, const double *F_init, double *F_final, double *growth_rate,
                     double *has_crossing, double *transition, double *deviation, double *outside) {
    return guarded([&] {
        if (model->outputs != OUTPUTS || model->inputs != 1)
            throw std::invalid_argument("this model gives final states alone; export it with --full");
        double *const all[OUTPUTS] = {F_final, growth_rate, has_crossing, transition, deviation, outside};
        for (size_t start = 0; start < n; start += BLOCK) {
            double *into[OUTPUTS];
            for (size_t k = 0; k < OUTPUTS; ++k) into[k] = all[k] ? all[k] + start * OUTPUT_COLUMNS[k] : nullptr;
            model->run_block(std::min(BLOCK, n - start), F_init + start * RHEIDAE_COLUMNS, nullptr, into, OUTPUTS);
        }
    });
}

void rheidae_destroy(rheidae_model *model) { delete model; }

const char *rheidae_error(void) { return last_error.c_str(); }

} // extern "C"
