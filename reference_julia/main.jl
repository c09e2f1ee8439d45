# Command line of the Julia reference; `julia main.jl --help` prints the usage.

include("Lebedev.jl")
include("Box3D.jl")
include("Power.jl")
include("Asymptotic.jl")
include("Golden.jl")

using .Lebedev: lebedev_rule, lebedev_orders
using .Box3D: box3d
using .Power: power
using .Asymptotic: asymptotic, sphere

const USAGE = """
usage: julia reference_julia/main.jl COMMAND

commands:
  golden OUTDIR                             write the golden files into OUTDIR
  box3d --order N [--mu-fraction X]         four-fluxes from stdin to stdout
  power --order N [--c X] [--p X] [--a X] [--axial X] [--p-axial X] [--a-axial X]
                                            the same by the continuous scheme
  asymptotic [--points N]                   the same by the asymptotic scheme, 2 N^2 nodes
  check                                     verify the Lebedev rules and the closure
  time --order N SAMPLES                    microseconds per sample, one thread

box3d, power and asymptotic read and write little-endian 64-bit floats, 24 a sample: species (nu_e,
nu_mu, nu_tau, nubar_e, nubar_mu, nubar_tau), then component (x, y, z, t).
"""

"An error in the command line: exit status 2."
struct UsageError <: Exception
    message::String
end

"Split the arguments of `command` into its positional ones and its options."
function parse_arguments(command, allowed, arguments)
    positional, options = String[], Dict{String,String}()
    i = 1
    while i <= length(arguments)
        argument = arguments[i]
        if startswith(argument, "--")
            argument in allowed || throw(UsageError("$command has no option $argument"))
            i < length(arguments) || throw(UsageError("$argument needs a value"))
            options[argument] = arguments[i+1]
            i += 2
        else
            push!(positional, argument)
            i += 1
        end
    end
    return positional, options
end

function parse_order(options)
    haskey(options, "--order") || throw(UsageError("--order is required"))
    order = tryparse(Int, options["--order"])
    order in lebedev_orders() || throw(UsageError(
        "--order $(options["--order"]) is no Lebedev order; available: " * join(lebedev_orders(), ", ")))
    return order
end

function parse_mu_fraction(options)
    haskey(options, "--mu-fraction") || return nothing
    value = tryparse(Float64, options["--mu-fraction"])
    value !== nothing && 0 <= value <= 1 || throw(UsageError(
        "--mu-fraction $(options["--mu-fraction"]) is not a number in [0, 1]"))
    return value
end

"Parameters of the power scheme that are given: option => (least, largest)."
const POWER_RANGES = (c=(0, 1.5), p=(0.01, Inf), a=(0.01, Inf), axial=(0, 1), p_axial=(0.01, Inf), a_axial=(0.01, Inf))

power_option(name) = "--" * replace(string(name), '_' => '-')

function parse_power_parameters(options)
    given = filter(name -> haskey(options, power_option(name)), keys(POWER_RANGES))
    values = map(given) do name
        text = options[power_option(name)]
        least, largest = POWER_RANGES[name]
        value = tryparse(Float64, text)
        value !== nothing && isfinite(value) && least <= value <= largest || throw(UsageError(
            "$(power_option(name)) $text is not a number in [$least, $largest]"))
        value
    end
    return NamedTuple{given}(values)
end

"Read samples from `input` as a 4 x 6 x n array."
function read_samples(input::IO)
    bytes = read(input)
    length(bytes) % (24 * 8) == 0 || throw(ArgumentError(
        "input has $(length(bytes)) bytes; expected a multiple of 192 (24 doubles a sample)"))
    numbers = ltoh.(reinterpret(Float64, bytes))
    return reshape(collect(numbers), 4, 6, :)
end

"Apply `scheme` (4 x 6 to 4 x 6) to each sample."
function evaluate(scheme, F)
    out = similar(F)
    for i in axes(F, 3)
        try
            out[:, :, i] = scheme(F[:, :, i])
        catch e
            e isa ArgumentError || rethrow()
            throw(ArgumentError("sample $(i - 1): $(e.msg)"))
        end
    end
    return out
end

"Microseconds per sample: the fastest of three passes, after one to compile."
function time_per_sample(order, n)
    rule = lebedev_rule(order)
    F = Golden.random_samples(n)
    scheme(sample) = box3d(sample, rule).F
    evaluate(scheme, F[:, :, 1:1])
    return minimum(@elapsed(evaluate(scheme, F)) for _ in 1:3) / n * 1e6
end

# One function a command: (positional arguments, options) to exit status.

function run_golden(positional, options)
    foreach(println, Golden.write_golden(positional[1]))
    return 0
end

function run_box3d(positional, options)
    rule = lebedev_rule(parse_order(options))
    mu_fraction = parse_mu_fraction(options)
    F_init = read_samples(stdin)
    write(stdout, htol.(evaluate(F -> box3d(F, rule; mu_fraction=mu_fraction).F, F_init)))
    return 0
end

function run_power(positional, options)
    rule = lebedev_rule(parse_order(options))
    parameters = parse_power_parameters(options)
    F_init = read_samples(stdin)
    write(stdout, htol.(evaluate(F -> power(F, rule; parameters...), F_init)))
    return 0
end

function run_asymptotic(positional, options)
    points = tryparse(Int, get(options, "--points", string(Golden.ASYMPTOTIC_POINTS)))
    points !== nothing && 2 <= points <= 1000 || throw(UsageError(
        "--points $(options["--points"]) is not an integer from 2 to 1000"))
    rule = sphere(points)
    F_init = read_samples(stdin)
    write(stdout, htol.(evaluate(F -> asymptotic(F, rule), F_init)))
    return 0
end

function run_check(positional, options)
    rules_ok = Lebedev.check(stdout)
    closure_ok = Golden.check_inverse_langevin(stdout)
    return rules_ok && closure_ok ? 0 : 1
end

function run_time(positional, options)
    order = parse_order(options)
    n = tryparse(Int, positional[1])
    n !== nothing && n > 0 || throw(UsageError("SAMPLES must be a positive integer, got $(positional[1])"))
    microseconds = round(time_per_sample(order, n), digits=2)
    println("$microseconds us per sample (order $order, $n samples, one thread)")
    return 0
end

"Name => (function, number of positional arguments, options)."
const COMMANDS = Dict{String,Tuple{Function,Int,Vector{String}}}(
    "golden" => (run_golden, 1, []),
    "box3d" => (run_box3d, 0, ["--order", "--mu-fraction"]),
    "power" => (run_power, 0, ["--order"; [power_option(name) for name in keys(POWER_RANGES)]]),
    "asymptotic" => (run_asymptotic, 0, ["--points"]),
    "check" => (run_check, 0, []),
    "time" => (run_time, 1, ["--order"]),
)

function run(arguments)
    isempty(arguments) && throw(UsageError("no command"))
    if arguments[1] in ("--help", "-h")
        print(USAGE)
        return 0
    end
    name = arguments[1]
    haskey(COMMANDS, name) || throw(UsageError("unknown command $name"))
    command, expected, allowed = COMMANDS[name]
    positional, options = parse_arguments(name, allowed, arguments[2:end])
    length(positional) == expected || throw(UsageError(
        "$name takes $expected positional argument(s), got $(length(positional))"))
    return command(positional, options)
end

# Everything is caught here: whoever runs the command wants the message, not a
# Julia backtrace.
function main(arguments)
    try
        return run(arguments)
    catch e
        if e isa UsageError
            print(stderr, "error: ", e.message, "\n\n", USAGE)
            return 2
        end
        println(stderr, "error: ", sprint(showerror, e))
        return 1
    end
end

exit(main(ARGS))
