! rheidae.h for Fortran. F is (4, 6, n): components (x, y, z, t), species (nu_e, nu_mu, nu_tau, nubar_e, nubar_mu,
! nubar_tau), cells; the order in memory is that of the C header.
!
!   use rheidae
!   type(c_ptr) :: model
!   if (rheidae_create("model.onnx" // c_null_char, 1_c_int, model) /= 0) error stop "rheidae"
!   if (rheidae_run(model, int(n, c_size_t), F, c_null_ptr, G) /= 0) error stop "rheidae"
!   call rheidae_destroy(model)
module rheidae
  use, intrinsic :: iso_c_binding
  implicit none

  interface
    integer(c_int) function rheidae_create(path, threads, model) bind(c)
      import :: c_int, c_char, c_ptr
      character(kind=c_char), intent(in) :: path(*)
      integer(c_int), value :: threads
      type(c_ptr), intent(out) :: model
    end function

    integer(c_int) function rheidae_needs_box3d(model) bind(c)
      import :: c_int, c_ptr
      type(c_ptr), value :: model
    end function

    ! F_box: c_loc of an array (4, 6, n), or c_null_ptr.
    integer(c_int) function rheidae_run(model, n, F_init, F_box, F_final) bind(c)
      import :: c_int, c_size_t, c_double, c_ptr
      type(c_ptr), value :: model
      integer(c_size_t), value :: n
      real(c_double), intent(in) :: F_init(4, 6, *)
      type(c_ptr), value :: F_box
      real(c_double), intent(out) :: F_final(4, 6, *)
    end function

    ! Whether it was exported with --full.
    integer(c_int) function rheidae_is_full(model) bind(c)
      import :: c_int, c_ptr
      type(c_ptr), value :: model
    end function

    ! Of a model that was exported with --full. transition(in, out, kind, cell): kind 1 of densities, 2 of fluxes.
    integer(c_int) function rheidae_run_full(model, n, F_init, F_final, growth_rate, has_crossing, transition, &
                                             deviation, outside) bind(c)
      import :: c_int, c_size_t, c_double, c_ptr
      type(c_ptr), value :: model
      integer(c_size_t), value :: n
      real(c_double), intent(in) :: F_init(4, 6, *)
      real(c_double), intent(out) :: F_final(4, 6, *), growth_rate(*), has_crossing(3, *), transition(6, 6, 2, *)
      real(c_double), intent(out) :: deviation(4, 6, *), outside(*)
    end function

    subroutine rheidae_destroy(model) bind(c)
      import :: c_ptr
      type(c_ptr), value :: model
    end subroutine

    type(c_ptr) function rheidae_error() bind(c)
      import :: c_ptr
    end function
  end interface

contains

  ! The message of the last call that did not return 0.
  function rheidae_message() result(message)
    character(:), allocatable :: message
    character(kind=c_char), pointer :: text(:)
    integer :: length
    call c_f_pointer(rheidae_error(), text, [4096])
    length = 0
    do while (text(length + 1) /= c_null_char .and. length < 4095)
      length = length + 1
    end do
    allocate (character(length) :: message)
    message = transfer(text(:length), message)
  end function

end module
