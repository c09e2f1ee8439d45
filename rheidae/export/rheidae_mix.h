/* Final four-fluxes of the neutrino fast flavor instability: what `python -m rheidae.export --format object` wrote.
 *
 * Link the object file and libm. Nothing else is needed, nothing is kept between calls, and any number of threads may
 * call at once. One such object in a program: two have the same names.
 *
 * Layout: double F[n][24], n cells one after the other, column 4*species + component, species
 * (nu_e, nu_mu, nu_tau, nubar_e, nubar_mu, nubar_tau), components (x, y, z, t): number flux over c and number density,
 * in 1/cm^3 or any other unit that is common to a cell; the output has that of the input. In Fortran: F(4, 6, n).
 *
 * Cells have to be physical, N >= 0 and |F| <= N; nothing is checked here. A cell without neutrinos comes back as it
 * is, one with a number that is not finite comes back as NaN.
 */
#ifndef RHEIDAE_MIX_H
#define RHEIDAE_MIX_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Final states of n cells. `F_final` may be `F_init`. n = 0 does nothing. Returns 0, or another number where there is no
 * memory for work arrays (less than 10 MB), and cells are undone from there on. Traps on floating-point exceptions are
 * off meanwhile, and the exceptions' flags are afterwards what they were.
 */
int rheidae_mix(size_t n, const double *F_init, double *F_final);

/* As rheidae_mix, with more outputs; there with --full alone. Each of them may be NULL, and is not worked out then.
 * `growth_rate` (n): of the instability, 1/s for F_init in 1/cm^3. `has_crossing` (n, 3): 1 where the lepton numbers of
 * e-mu, e-tau, mu-tau cross, else 0. `transition` (n, 2, 6, 6): matrices of densities and of fluxes, species out and in,
 * for what mixes as the numbers do, such as energy groups. `deviation` (n, 24): standard deviations of `F_final`.
 * `outside` (n): 1 where the cell lies outside of the states that the model was trained on, else 0. NaN where a number of
 * the cell is not finite.
 */
int rheidae_mix_full(size_t n, const double *F_init, double *F_final, double *growth_rate, double *has_crossing,
                     double *transition, double *deviation, double *outside);

/* What the model is, as JSON: units, versions, how near it comes to what it was made from. */
extern const char rheidae_mix_metadata[];

#ifdef __cplusplus
}
#endif

#endif
