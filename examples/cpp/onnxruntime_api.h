/* The part of onnxruntime's C API that rheidae.cpp calls, for machines without its headers.
 *
 * The library is reached by one symbol, OrtGetApiBase, which returns a table of functions for the version that is asked
 * for. Entries of that table keep their place in all versions: those that are not called are left as gaps here. Where
 * the real header is installed (onnxruntime_c_api.h), rheidae.cpp takes that one.
 */
#ifndef RHEIDAE_ONNXRUNTIME_API_H
#define RHEIDAE_ONNXRUNTIME_API_H

#include <cstddef>
#include <cstdint>

/* Every function below is in version 1 or 2; 11 is old enough for libraries of 2022. */
#define ORT_API_VERSION 11

extern "C" {

struct OrtEnv;
struct OrtStatus;
struct OrtMemoryInfo;
struct OrtSession;
struct OrtValue;
struct OrtRunOptions;
struct OrtSessionOptions;
struct OrtModelMetadata;
struct OrtAllocator;

enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING = 2 };
enum OrtAllocatorType { OrtArenaAllocator = 1 };
enum OrtMemType { OrtMemTypeDefault = 0 };
enum ONNXTensorElementDataType { ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE = 11 };

typedef void (*OrtGap)(void);

struct OrtApi {
    OrtGap gap_0[2];
    const char *(*GetErrorMessage)(const OrtStatus *);                                           /* 2 */
    OrtStatus *(*CreateEnv)(OrtLoggingLevel, const char *name, OrtEnv **);                       /* 3 */
    OrtGap gap_4[3];
    OrtStatus *(*CreateSession)(const OrtEnv *, const char *path, const OrtSessionOptions *, OrtSession **); /* 7 */
    OrtGap gap_8[1];
    OrtStatus *(*Run)(OrtSession *, const OrtRunOptions *, const char *const *input_names, const OrtValue *const *inputs,
                      size_t n_inputs, const char *const *output_names, size_t n_outputs, OrtValue **outputs); /* 9 */
    OrtStatus *(*CreateSessionOptions)(OrtSessionOptions **);                                    /* 10 */
    OrtGap gap_11[13];
    OrtStatus *(*SetIntraOpNumThreads)(OrtSessionOptions *, int);                                /* 24 */
    OrtGap gap_25[5];
    OrtStatus *(*SessionGetInputCount)(const OrtSession *, size_t *);                            /* 30 */
    OrtStatus *(*SessionGetOutputCount)(const OrtSession *, size_t *);                           /* 31 */
    OrtGap gap_32[17];
    OrtStatus *(*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo *, void *data, size_t bytes, const int64_t *shape,
                                                 size_t axes, ONNXTensorElementDataType, OrtValue **); /* 49 */
    OrtGap gap_50[19];
    OrtStatus *(*CreateCpuMemoryInfo)(OrtAllocatorType, OrtMemType, OrtMemoryInfo **);           /* 69 */
    OrtGap gap_70[6];
    OrtStatus *(*AllocatorFree)(OrtAllocator *, void *);                                         /* 76 */
    OrtGap gap_77[1];
    OrtStatus *(*GetAllocatorWithDefaultOptions)(OrtAllocator **);                               /* 78 */
    OrtGap gap_79[13];
    void (*ReleaseEnv)(OrtEnv *);                                                                /* 92 */
    void (*ReleaseStatus)(OrtStatus *);                                                          /* 93 */
    void (*ReleaseMemoryInfo)(OrtMemoryInfo *);                                                  /* 94 */
    void (*ReleaseSession)(OrtSession *);                                                        /* 95 */
    void (*ReleaseValue)(OrtValue *);                                                            /* 96 */
    OrtGap gap_97[3];
    void (*ReleaseSessionOptions)(OrtSessionOptions *);                                          /* 100 */
    OrtGap gap_101[10];
    OrtStatus *(*SessionGetModelMetadata)(const OrtSession *, OrtModelMetadata **);              /* 111 */
    OrtGap gap_112[4];
    OrtStatus *(*ModelMetadataLookupCustomMetadataMap)(const OrtModelMetadata *, OrtAllocator *, const char *key,
                                                       char **value);                            /* 116 */
    OrtGap gap_117[1];
    void (*ReleaseModelMetadata)(OrtModelMetadata *);                                            /* 118 */
};

struct OrtApiBase {
    const OrtApi *(*GetApi)(uint32_t version); /* null where the library is older */
    const char *(*GetVersionString)(void);
};

const OrtApiBase *OrtGetApiBase(void);

} /* extern "C" */

#define RHEIDAE_PLACE(name, place) \
    static_assert(offsetof(OrtApi, name) == (place) * sizeof(OrtGap), #name " is not in its place")
RHEIDAE_PLACE(CreateEnv, 3);
RHEIDAE_PLACE(CreateSession, 7);
RHEIDAE_PLACE(CreateSessionOptions, 10);
RHEIDAE_PLACE(SetIntraOpNumThreads, 24);
RHEIDAE_PLACE(SessionGetInputCount, 30);
RHEIDAE_PLACE(SessionGetOutputCount, 31);
RHEIDAE_PLACE(CreateTensorWithDataAsOrtValue, 49);
RHEIDAE_PLACE(CreateCpuMemoryInfo, 69);
RHEIDAE_PLACE(AllocatorFree, 76);
RHEIDAE_PLACE(GetAllocatorWithDefaultOptions, 78);
RHEIDAE_PLACE(ReleaseEnv, 92);
RHEIDAE_PLACE(ReleaseSessionOptions, 100);
RHEIDAE_PLACE(SessionGetModelMetadata, 111);
RHEIDAE_PLACE(ModelMetadataLookupCustomMetadataMap, 116);
RHEIDAE_PLACE(ReleaseModelMetadata, 118);

#endif
