// A block of cells with vacuum in it, as a moment code has them: three species, nu_e, nubar_e, and nu_x for the four
// others together, each on its own grid. Prints the densities and fluxes of all cells after mixing.
//
//   python -m rheidae.export --pretrained --format object --out model.o
//   g++ -std=c++17 -I. block.cpp model.o -lm -o block
#include <cmath>
#include <cstdio>
#include <vector>

#include "rheidae_mix.h"

namespace {

constexpr int N = 6;  // cells along each axis
constexpr int CELLS = N * N * N;
constexpr int COLUMNS = 24;  // of six species

// What the code has: moments[species][component][cell], components x, y, z of the flux over c, then the density, 1/cm^3.
double moments[3][4][CELLS];

void fill() {
    for (int i = 0; i < CELLS; ++i) {
        const double a = double(i % 7) / 7, b = double(i % 5) / 5;
        const double density[3] = {1e33 * (1 + 0.2 * a), 1e33 * (0.9 + 0.2 * b), 1.5e33};
        const double factor[3] = {0.1 + 0.1 * b, 0.3 + 0.2 * a, 0.5};
        for (int s = 0; s < 3; ++s) {
            const double n = i % 11 == 0 ? 0 : density[s];  // each eleventh cell is empty
            moments[s][0][i] = 0.3 * factor[s] * n * a;
            moments[s][1][i] = 0.3 * factor[s] * n * b;
            moments[s][2][i] = 0.9 * factor[s] * n;
            moments[s][3][i] = n;
        }
    }
}

}  // namespace

int main() {
    fill();
    // Six species, a quarter of nu_x each, cell by cell.
    const int from[6] = {0, 2, 2, 1, 2, 2};
    std::vector<double> F(CELLS * COLUMNS);
    for (int i = 0; i < CELLS; ++i)
        for (int s = 0; s < 6; ++s)
            for (int k = 0; k < 4; ++k)
                F[i * COLUMNS + 4 * s + k] = moments[from[s]][k][i] * (from[s] == 2 ? 0.25 : 1);
    if (rheidae_mix(CELLS, F.data(), F.data())) return std::fprintf(stderr, "block: no memory\n"), 1;
    for (int i = 0; i < CELLS; ++i) {
        double back[3][4] = {};
        for (int s = 0; s < 6; ++s)
            for (int k = 0; k < 4; ++k) back[from[s]][k] += F[i * COLUMNS + 4 * s + k];
        for (const auto &species : back)
            for (const double number : species) std::printf("%.17g ", number);
        std::printf("\n");
    }
    return 0;
}
