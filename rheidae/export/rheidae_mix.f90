! rheidae_mix.h for Fortran. F is (4, 6, n): components (x, y, z, t), species (nu_e, nu_mu, nu_tau, nubar_e, nubar_mu,
! nubar_tau), cells; the order in memory is that of the C header.
!
!   use rheidae_compiled
!   if (rheidae_mix(int(n, c_size_t), F, G) /= 0) error stop "rheidae: no memory"
module rheidae_compiled
  use, intrinsic :: iso_c_binding
  implicit none

  interface
    integer(c_int) function rheidae_mix(n, F_init, F_final) bind(c)
      import :: c_int, c_size_t, c_double
      integer(c_size_t), value :: n
      real(c_double), intent(in) :: F_init(4, 6, *)
      real(c_double), intent(out) :: F_final(4, 6, *)
    end function

    ! There with --full alone. transition(in, out, kind, cell): kind 1 of densities, 2 of fluxes.
    integer(c_int) function rheidae_mix_full(n, F_init, F_final, growth_rate, has_crossing, transition, deviation, &
                                             outside) bind(c)
      import :: c_int, c_size_t, c_double
      integer(c_size_t), value :: n
      real(c_double), intent(in) :: F_init(4, 6, *)
      real(c_double), intent(out) :: F_final(4, 6, *), growth_rate(*), has_crossing(3, *), transition(6, 6, 2, *)
      real(c_double), intent(out) :: deviation(4, 6, *), outside(*)
    end function
  end interface
end module
