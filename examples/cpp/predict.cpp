// Final four-fluxes of a table of initial ones:  predict MODEL.onnx [INPUT] > OUTPUT
//
// INPUT (default: standard input) is text, a cell a line: 24 numbers, or 48 with Box3D's answer behind them where the
// model wants it; empty lines and those that begin with # are passed over. OUTPUT: 24 numbers a line, to the last bit.
// predict --time N MODEL.onnx INPUT  prints the microseconds per cell in one batch and of one cell alone, the best of N.

#include "rheidae.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

namespace {

struct Table {
    std::vector<double> init, box;
    size_t rows = 0;
};

int fail(const std::string &message) {
    std::cerr << "error: " << message << "\n";
    return 2;
}

// Returns what is wrong with it, or nothing.
std::string read(std::istream &in, bool with_box, Table &table) {
    const size_t wanted = RHEIDAE_COLUMNS * (with_box ? 2 : 1);
    std::string line;
    for (size_t number = 1; std::getline(in, line); ++number) {
        const size_t first = line.find_first_not_of(" \t\r");
        if (first == std::string::npos || line[first] == '#') continue;
        std::istringstream words(line);
        std::vector<double> row;
        for (std::string word; words >> word;) {
            char *end = nullptr;
            row.push_back(std::strtod(word.c_str(), &end));
            if (*end) return "line " + std::to_string(number) + ": '" + word + "' is not a number";
        }
        if (row.size() != wanted)
            return "line " + std::to_string(number) + " has " + std::to_string(row.size()) + " numbers; expected " +
                   std::to_string(wanted);
        table.init.insert(table.init.end(), row.begin(), row.begin() + RHEIDAE_COLUMNS);
        table.box.insert(table.box.end(), row.begin() + RHEIDAE_COLUMNS, row.end());
        ++table.rows;
    }
    return "";
}

// Best of several runs, in microseconds; negative after an error.
double best_time(rheidae_model *model, const Table &table, size_t cells, int repeats) {
    std::vector<double> out(cells * RHEIDAE_COLUMNS);
    double best = 1e30;
    for (int k = 0; k <= repeats; ++k) { // the first one warms up
        const auto start = std::chrono::steady_clock::now();
        if (rheidae_run(model, cells, table.init.data(), table.box.empty() ? nullptr : table.box.data(), out.data()))
            return -1;
        const std::chrono::duration<double, std::micro> passed = std::chrono::steady_clock::now() - start;
        if (k) best = std::min(best, passed.count());
    }
    return best;
}

} // namespace

int main(int argc, char **argv) {
    int repeats = 0;
    if (argc > 2 && std::strcmp(argv[1], "--time") == 0) {
        repeats = std::max(1, std::atoi(argv[2]));
        argc -= 2;
        argv += 2;
    }
    if (argc < 2 || argc > 3) return fail("usage: predict [--time N] MODEL.onnx [INPUT]");

    rheidae_model *model = nullptr;
    if (rheidae_create(argv[1], 1, &model)) return fail(rheidae_error());

    Table table;
    std::string wrong;
    if (argc == 3) {
        std::ifstream file(argv[2]);
        wrong = file ? read(file, rheidae_needs_box3d(model), table) : "cannot be opened";
        if (!wrong.empty()) wrong = std::string(argv[2]) + ": " + wrong;
    } else {
        wrong = read(std::cin, rheidae_needs_box3d(model), table);
    }
    int status = 0;
    if (!wrong.empty()) {
        status = fail(wrong);
    } else if (repeats && table.rows) {
        std::printf("%.3f us per cell in a batch of %zu, %.3f us for one\n",
                    best_time(model, table, table.rows, repeats) / table.rows, table.rows,
                    best_time(model, table, 1, repeats));
    } else {
        std::vector<double> final_state(table.init.size());
        const double *box = table.box.empty() ? nullptr : table.box.data();
        if (rheidae_run(model, table.rows, table.init.data(), box, final_state.data())) {
            status = fail(rheidae_error());
        } else {
            for (size_t i = 0; i < final_state.size(); ++i)
                std::printf("%.17g%c", final_state[i], (i + 1) % RHEIDAE_COLUMNS ? ' ' : '\n');
        }
    }
    rheidae_destroy(model);
    return status;
}
