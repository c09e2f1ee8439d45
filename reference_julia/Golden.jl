"""
Golden files: inputs and outputs of the reference, in full precision.

Every value but those of asymptotic mixing, see there, is computed in BigFloat
and rounded once, and the inputs come from a generator that uses only integer
arithmetic, + - * / and sqrt. The files are therefore the same to the last byte
on every machine and in every Julia version.
"""
module Golden

export write_golden, random_samples

using Printf
using ..Lebedev: Rule, lebedev_rule
using ..Box3D: box3d, inverse_langevin, langevin
using ..Power: power
using ..Asymptotic: asymptotic, crossing_pairs, sphere

const SPECIES = ("nu_e", "nu_mu", "nu_tau", "nubar_e", "nubar_mu", "nubar_tau")
const COMPONENTS = ("x", "y", "z", "t")
const SAMPLE_ORDERS = (13, 17, 31, 53)
const MU_FRACTIONS = (0.0, 0.3, 0.5, 1.0)

"Bits of the numbers that the golden values are computed in."
const PRECISION = 256

# ------------------------------------------------------------- generator ---

"SplitMix64 (Steele, Lea and Flood 2014): a 64-bit counter and a mixing function."
mutable struct SplitMix64
    state::UInt64
end

function next!(random::SplitMix64)
    random.state += 0x9e3779b97f4a7c15
    z = random.state
    z = (z ⊻ (z >> 30)) * 0xbf58476d1ce4e5b9
    z = (z ⊻ (z >> 27)) * 0x94d049bb133111eb
    return z ⊻ (z >> 31)
end

"Uniform in [0, 1), or in [low, high)."
uniform(random) = (next!(random) >> 11) * 2.0^-53
uniform(random, low, high) = low + (high - low) * uniform(random)

"Random unit vector, by rejection: sine and cosine may differ between machines."
function direction(random)
    while true
        v = [uniform(random, -1, 1) for _ in 1:3]
        norm = sqrt(v[1] * v[1] + v[2] * v[2] + v[3] * v[3])
        0.1 < norm < 1 && return v / norm
    end
end

"Four-flux with density N and flux factor f."
four_flux(N, f, Fhat) = [N * f * Fhat; N]

# --------------------------------------------------------------- samples ---
# Each returns a 4 x 6 matrix. Densities are near 1e33 / cm^3, as in mergers.

"All six species different, flux factors up to `f_max`."
function random_sample(random; f_max=0.999, scale=1e33)
    F = [four_flux(uniform(random, 0.05, 1), uniform(random, 0, f_max), direction(random)) for _ in 1:6]
    return scale * hcat(F...)
end

"Fluxes around one axis, more nubar_e than nu_e, few and forward heavy flavors, mu = tau."
function merger_sample(random)
    axis = direction(random)
    function species(low_N, high_N, low_f, high_f)
        v = axis + 0.5 * direction(random)
        norm = sqrt(v[1] * v[1] + v[2] * v[2] + v[3] * v[3])
        return four_flux(uniform(random, low_N, high_N), uniform(random, low_f, high_f), v / norm)
    end
    e = species(0.5, 1.0, 0.1, 0.5)
    ebar = species(0.7, 1.2, 0.2, 0.7)
    x = species(0.1, 0.4, 0.4, 0.8)
    xbar = species(0.1, 0.4, 0.4, 0.8)
    return 1e33 * hcat(e, x, x, ebar, xbar, xbar)
end

"So many nu_e that G > 0 in every direction."
function no_crossing_sample(random)
    F = random_sample(random; f_max=0.5)
    F[:, 1] = four_flux(1e34, uniform(random, 0, 0.2), direction(random))
    return F
end

"One species isotropic."
function isotropic_sample(random, species)
    F = random_sample(random; f_max=0.9)
    F[1:3, species] .= 0
    return F
end

"The listed species empty."
function empty_sample(random, species)
    F = random_sample(random; f_max=0.9)
    F[:, species] .= 0
    return F
end

"One species with the given flux factor."
function flux_factor_sample(random, species, f)
    F = random_sample(random; f_max=0.9)
    F[:, species] = four_flux(F[4, species], f, direction(random))
    return F
end

"Antineutrinos equal to neutrinos: G = 0 everywhere, so there is no crossing."
function symmetric_sample(random)
    F = random_sample(random; f_max=0.9)
    F[:, 4:6] = F[:, 1:3]
    return F
end

"Antineutrino fluxes opposite to neutrino fluxes: G is odd, both sides mix fully."
function mirrored_sample(random)
    F = random_sample(random; f_max=0.9)
    F[:, 4:6] = F[:, 1:3] .* [-1, -1, -1, 1]
    return F
end

"Neutrinos and antineutrinos exchanged."
swapped(F) = F[:, [4, 5, 6, 1, 2, 3]]

"Samples that the tests want: (kind, number of them, function of the generator)."
const KINDS = Tuple{String,Int,Function}[
    ("random", 8, random_sample),
    ("large_flux_factor", 1, r -> flux_factor_sample(r, 1, 0.999)),
    ("large_flux_factor", 1, r -> flux_factor_sample(r, 4, 0.999)),
    ("merger", 4, merger_sample),
    ("no_crossing", 2, no_crossing_sample),
    ("isotropic", 1, r -> isotropic_sample(r, 1)),
    ("isotropic", 1, r -> isotropic_sample(r, 4)),
    ("all_isotropic", 1, r -> isotropic_sample(r, 1:6)),
    ("empty_nu_e", 1, r -> empty_sample(r, 1)),
    ("empty_heavy", 1, r -> empty_sample(r, [2, 3, 5, 6])),
    ("empty_nu_tau", 1, r -> empty_sample(r, 3)),
    ("flux_factor_1e-12", 1, r -> flux_factor_sample(r, 1, 1e-12)),
    ("flux_factor_1e-12", 1, r -> flux_factor_sample(r, 5, 1e-12)),
    ("flux_factor_0.999999", 1, r -> flux_factor_sample(r, 4, 0.999999)),
    ("flux_factor_0.999999", 1, r -> flux_factor_sample(r, 2, 0.999999)),
    ("symmetric", 1, symmetric_sample),
    ("mirrored", 1, mirrored_sample),
    ("density_1e-30", 1, r -> random_sample(r; f_max=0.9, scale=1e-30)),
    ("density_1e40", 1, r -> random_sample(r; f_max=0.9, scale=1e40)),
]

"Kinds that have no crossing; all others have one."
const WITHOUT_CROSSING = ("no_crossing", "all_isotropic", "symmetric")

"n random samples as a 4 x 6 x n array, for timing."
function random_samples(n; seed=1)
    random = SplitMix64(seed)
    F = zeros(4, 6, n)
    for i in 1:n
        F[:, :, i] = random_sample(random)
    end
    return F
end

# ------------------------------------------------------------ evaluation ---

"Box3D of a Float64 sample, computed in BigFloat."
box3d_exact(F, rule; options...) = box3d(BigFloat.(F), Rule{BigFloat}(rule); options...)

"""
    well_posed(F, rule)

Whether every correct double-precision implementation must reproduce the golden
value. Where rounding decides on which side of G = 0 a node lies, it need not:
G in Float64 must keep its sign and three digits at every node. Neither must it
where rounding is amplified: the result in Float64 must be right to 1e-12.
"""
function well_posed(F, rule)
    exact, rounded = box3d_exact(F, rule), box3d(F, rule)
    same_sides = (exact.G .> 0) == (rounded.G .> 0)
    clear = all(abs.(rounded.G .- exact.G) .<= 1e-3 .* abs.(exact.G))
    same_crossing = (exact.P_plus == 1) == (rounded.P_plus == 1)
    error = maximum(abs, exact.F - rounded.F) / sum(F[4, :])
    return same_sides && clear && same_crossing && error <= 1e-12
end

"The first well-posed sample that `draw` makes and `accept` takes."
function draw_sample(draw, random, rule; accept=result -> true)
    for _ in 1:10_000
        F = draw(random)
        accept(box3d(F, rule)) && well_posed(F, rule) && return F  # the quicker one first
    end
    error("found no acceptable sample")
end

"Whether a result has a crossing just when its kind should."
crosses(kind) = result -> (result.P_plus < 1) == !(kind in WITHOUT_CROSSING)

"Samples for one order, as (kind, F)."
function golden_samples(rule)
    random = SplitMix64(rule.order)
    samples = Tuple{String,Matrix{Float64}}[]
    for (kind, copies, draw) in KINDS, _ in 1:copies
        push!(samples, (kind, draw_sample(draw, random, rule; accept=crosses(kind))))
    end
    push!(samples, ("swapped", swapped(samples[1][2])))
    if minimum(rule.w) < 0
        # Only nodes with a negative weight lie on the small side.
        accept = result -> min(result.I_plus, result.I_minus) < 0
        push!(samples, ("negative_weight", draw_sample(random_sample, random, rule; accept=accept)))
    end
    return samples
end

# ----------------------------------------------------------------- files ---

full(x) = @sprintf("%.17g", Float64(x))

"Column names of a flat four-flux: species, then component."
flat_names(prefix) = ["$(prefix)_$(s)_$(c)" for s in SPECIES for c in COMPONENTS]

write_row(io, fields) = println(io, join(fields, ','))

"One golden file of samples for one order."
function write_samples(path, order)
    rule = lebedev_rule(order)
    open(path, "w") do io
        write_row(io, ["kind"; flat_names("in"); flat_names("out"); "P_plus"; "P_minus"; "I_plus"; "I_minus"])
        for (kind, F) in golden_samples(rule)
            result = box3d_exact(F, rule)
            diagnostics = [result.P_plus, result.P_minus, result.I_plus, result.I_minus]
            write_row(io, [kind; full.(vec(F)); full.(vec(result.F)); full.(diagnostics)])
        end
    end
end

"The golden file for `mu_fraction`."
function write_mu_fractions(path, order)
    rule = lebedev_rule(order)
    random = SplitMix64(1000 + order)
    open(path, "w") do io
        write_row(io, ["kind"; "mu_fraction"; flat_names("in"); flat_names("out")])
        for mu_fraction in MU_FRACTIONS
            for (kind, draw) in (("random", random_sample), ("merger", merger_sample), ("no_crossing", no_crossing_sample))
                F = draw_sample(draw, random, rule; accept=crosses(kind))
                result = box3d_exact(F, rule; mu_fraction=BigFloat(mu_fraction))
                write_row(io, [kind; full(mu_fraction); full.(vec(F)); full.(vec(result.F))])
            end
        end
    end
end

"Parameters of the power scheme, in the order of its columns."
const POWER_PARAMETERS = (:c, :p, :a, :axial, :p_axial, :a_axial)

"Random ones."
function power_parameters(random, with_axial)
    ranges = ((0.5, 1.2), (0.3, 2.0), (1.0, 4.0), (0.2, 1.0), (0.3, 2.0), (1.0, 4.0))
    values = [uniform(random, low, high) for (low, high) in ranges]
    with_axial || (values[4] = 0)
    return NamedTuple{POWER_PARAMETERS}(Tuple(values))
end

"""
The golden file for the power scheme, every second sample without an axial
component. The Float64 result must be right to 1e-11, and whether there is a
crossing must be plain.
"""
function write_power(path, order)
    rule = lebedev_rule(order)
    exact_rule = Rule{BigFloat}(rule)
    random = SplitMix64(2000 + order)
    open(path, "w") do io
        write_row(io, ["kind"; string.(POWER_PARAMETERS)...; flat_names("in"); flat_names("out")])
        with_axial = false
        for (kind, copies, draw) in KINDS, _ in 1:copies
            with_axial = !with_axial
            F = draw_sample(draw, random, rule; accept=crosses(kind))
            parameters = power_parameters(random, with_axial)
            result = power(BigFloat.(F), exact_rule; map(BigFloat, parameters)...)
            off = maximum(abs, result - power(F, rule; parameters...)) / sum(F[4, :])
            off <= 1e-11 || error("power scheme off by $error in Float64, $kind")
            write_row(io, [kind; full.(collect(parameters)); full.(vec(F)); full.(vec(result))])
        end
    end
end

"Points in z of the quadrature of the asymptotic scheme: right to about 1e-6 of the total density."
const ASYMPTOTIC_POINTS = 48

"The sample with mu equal to tau."
alike(F) = F[:, [1, 2, 2, 4, 5, 5]]

"One flavor has more antineutrinos than the others everywhere: the other two may cross."
function outlier_sample(random, flavor)
    F = random_sample(random; f_max=0.7, scale=1.0)
    F[:, flavor] .= 0
    F[:, flavor+3] = four_flux(6.0, 0.1, direction(random))
    return F
end

"Samples of the asymptotic scheme: (kind, number of them, function of the generator, number of pairs that cross)."
const ASYMPTOTIC_KINDS = Tuple{String,Int,Function,UnitRange{Int}}[
    ("alike", 10, r -> alike(random_sample(r; f_max=0.75, scale=1.0)), 2:2),
    ("alike_merger", 6, merger_sample, 2:2),
    ("alike_wide", 5, r -> alike(random_sample(r; f_max=0.95, scale=1.0)), 2:2),
    ("alike_empty", 1, r -> alike(empty_sample(r, [2, 3])), 2:2),
    ("alike_mirrored", 1, r -> alike(mirrored_sample(r)), 2:2),
    ("unlike", 10, r -> random_sample(r; f_max=0.75, scale=1.0), 2:3),
    ("unlike_wide", 5, r -> random_sample(r; f_max=0.95, scale=1.0), 2:3),
    ("unlike_empty", 1, r -> empty_sample(r, 3), 1:3),
    ("one_pair", 1, r -> outlier_sample(r, 1), 1:1),
    ("one_pair", 1, r -> outlier_sample(r, 2), 1:1),
    ("one_pair", 1, r -> outlier_sample(r, 3), 1:1),
    ("no_crossing", 1, no_crossing_sample, 0:0),
    ("no_crossing", 1, symmetric_sample, 0:0),
]

"""
The golden file of the asymptotic scheme. It is computed in Float64, where
machines and versions of Julia may differ in the last digits, so numbers are
rounded to eight, inputs to seven.
"""
function write_asymptotic(path)
    rule, coarse = sphere(ASYMPTOTIC_POINTS), sphere(16)
    random = SplitMix64(3000)
    short(x) = @sprintf("%.8g", x)
    open(path, "w") do io
        write_row(io, ["kind"; flat_names("in"); flat_names("out")])
        for (kind, copies, draw, pairs) in ASYMPTOTIC_KINDS, _ in 1:copies
            F = round.(draw(random), sigdigits=7)
            while !(count(crossing_pairs(F, coarse)) in pairs)
                F = round.(draw(random), sigdigits=7)
            end
            write_row(io, [kind; short.(vec(F)); short.(vec(asymptotic(F, rule)))])
        end
    end
end

"Flux factors from 0 to the largest double below 1, ascending."
function flux_factors()
    random = SplitMix64(7)
    tiny = [BigFloat(10)^-k for k in 300:-20:20]
    small = [BigFloat(10)^-k for k in 18:-1:2]
    middle = [BigFloat(uniform(random)) for _ in 1:80]
    near_one = [1 - BigFloat(10)^-k for k in 2:15]
    scattered = [1 - BigFloat(10)^-k * uniform(random, 0.1, 1) for k in 1:14 for _ in 1:3]
    ends = [big(0.0), big(0.5), BigFloat(prevfloat(1.0))]
    return sort!(unique!(Float64.([tiny; small; middle; near_one; scattered; ends])))
end

"The golden file for the inverse Langevin function."
function write_inverse_langevin(path)
    open(path, "w") do io
        write_row(io, ["f", "Z"])
        for f in flux_factors()
            write_row(io, [full(f), full(inverse_langevin(BigFloat(f)))])
        end
    end
end

"""
    check_inverse_langevin(io)

True if, for every flux factor of the golden file, both the Float64 result and
its neighbours 4 ulp away enclose the root of `coth Z - 1/Z = f`. The formula is
evaluated as it stands, with so many bits that its cancellation does no harm.
"""
function check_inverse_langevin(io::IO)
    ok = true
    setprecision(BigFloat, 4096) do
        L(Z) = Z == 0 ? big(0.0) : coth(BigFloat(Z)) - 1 / BigFloat(Z)
        for f in flux_factors()
            Z = inverse_langevin(f)
            inside = f == 0 ? Z == 0 : L(prevfloat(Z, 4)) <= f <= L(nextfloat(Z, 4))
            inside || println(io, "inverse_langevin($f) = $Z is off by more than 4 ulp")
            ok &= inside
        end
    end
    println(io, "inverse Langevin function: ", length(flux_factors()), " values within 4 ulp  ", ok ? "ok" : "FAILED")
    return ok
end

"Write all golden files into the folder `outdir` and return their paths."
function write_golden(outdir::AbstractString)
    mkpath(outdir)
    paths = String[]
    setprecision(BigFloat, PRECISION) do
        for order in SAMPLE_ORDERS
            push!(paths, joinpath(outdir, "box3d_order$order.csv"))
            write_samples(paths[end], order)
        end
        push!(paths, joinpath(outdir, "mu_fraction_order17.csv"))
        write_mu_fractions(paths[end], 17)
        push!(paths, joinpath(outdir, "power_order17.csv"))
        write_power(paths[end], 17)
        push!(paths, joinpath(outdir, "asymptotic.csv"))
        write_asymptotic(paths[end])
        push!(paths, joinpath(outdir, "inverse_langevin.csv"))
        write_inverse_langevin(paths[end])
    end
    return paths
end

end
