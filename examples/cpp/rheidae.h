/* Final four-fluxes of the neutrino fast flavor instability, for codes in C, C++ and Fortran.
 *
 * A model is a file that `python -m rheidae.export --format onnx` wrote. Link librheidae.so and onnxruntime.
 *
 * Layout: double F[n][24], n cells one after the other, column 4*species + component, species
 * (nu_e, nu_mu, nu_tau, nubar_e, nubar_mu, nubar_tau), components (x, y, z, t): number flux over c and number density,
 * in 1/cm^3 or any other unit that is common to a cell; the output has that of the input. In Fortran: F(4, 6, n).
 *
 * Cells have to be physical, N >= 0 and |F| <= N; nothing is checked here. A cell without neutrinos comes back as it
 * is, one with a NaN comes back with NaN.
 */
#ifndef RHEIDAE_H
#define RHEIDAE_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { RHEIDAE_COLUMNS = 24, RHEIDAE_SPECIES = 6, RHEIDAE_COMPONENTS = 4 };

typedef struct rheidae_model rheidae_model;

/* Open a model. `threads`: of its own for each call of rheidae_run; 1 is right where the caller has threads or
 * processes, 0 takes all processors. Returns 0, and a model to give to rheidae_destroy; or another number, and NULL.
 */
int rheidae_create(const char *path, int threads, rheidae_model **model);

/* Whether the model wants Box3D's answer beside the initial state: 1 or 0. */
int rheidae_needs_box3d(const rheidae_model *model);

/* The metadata of the file as JSON; it belongs to the model. */
const char *rheidae_metadata(const rheidae_model *model);

/* Final states of n cells, in blocks that fit the cache. `F_box`: NULL unless rheidae_needs_box3d. `F_final` may be
 * `F_init`. n = 0 does nothing. Several threads may call it with one model. Returns 0, or another number; cells before
 * the block that failed are done then.
 */
int rheidae_run(rheidae_model *model, size_t n, const double *F_init, const double *F_box, double *F_final);

/* Whether the model was exported with --full: 1 or 0. */
int rheidae_is_full(const rheidae_model *model);

/* As rheidae_run, of a model that is full, with more outputs; each of them may be NULL.
 * `growth_rate` (n): of the instability, 1/s for F_init in 1/cm^3. `has_crossing` (n, 3): 1 where the lepton numbers of
 * e-mu, e-tau, mu-tau cross, else 0. `transition` (n, 2, 6, 6): matrices of densities and of fluxes, species out and in,
 * for what mixes as the numbers do, such as energy groups. `deviation` (n, 24): standard deviations of `F_final`.
 * `outside` (n): 1 where the cell lies outside of the states that the model was trained on, else 0. NaN where a number of
 * the cell is.
 */
int rheidae_run_full(rheidae_model *model, size_t n, const double *F_init, double *F_final, double *growth_rate,
                     double *has_crossing, double *transition, double *deviation, double *outside);

/* Close a model; NULL is allowed. */
void rheidae_destroy(rheidae_model *model);

/* What the last call of this thread that did not return 0 has to say. */
const char *rheidae_error(void);

#ifdef __cplusplus
}
#endif

#endif
