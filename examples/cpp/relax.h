/* Relaxation towards the mixed state over a time step, as rheidae.relaxation.relax has it: the exact solution of
 * dF/dt = -(F - F_mixed) rate with F_mixed and rate held fixed (Bhatnagar-Gross-Krook; Nagakura, Johns and Zaizen,
 * arXiv:2312.16285). Stable for any step, and between both states, so that what they have in common holds.
 */
#ifndef RHEIDAE_RELAX_H
#define RHEIDAE_RELAX_H

#include <math.h>
#include <stddef.h>

/* n cells of `columns` numbers each (24: rheidae.h), one after the other. `rate`: n numbers, 1/s, not negative, such as
 * the growth rate of the instability, 0 where a cell is stable. `dt`: s. `F` is what is there before and after.
 */
static inline void rheidae_relax(size_t n, size_t columns, double *F, const double *F_mixed, const double *rate,
                                 double dt) {
    for (size_t i = 0; i < n; ++i) {
        const double share = dt > 0.0 && rate[i] != 0.0 ? -expm1(-rate[i] * dt) : 0.0;
        for (size_t k = i * columns; k < (i + 1) * columns; ++k) F[k] += (F_mixed[k] - F[k]) * share;
    }
}

#endif
