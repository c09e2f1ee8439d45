! A block of cells with vacuum in it, as a moment code has them: three species, nu_e, nubar_e, and nu_x for the four
! others together. Prints the fluxes and densities of all cells after mixing.
!
!   python -m rheidae.export --pretrained --format object --out model.o
!   gfortran rheidae_mix.f90 block.f90 model.o -o block
program block
  use rheidae_compiled
  implicit none
  integer, parameter :: cells = 6**3, from(6) = [1, 3, 3, 2, 3, 3]
  ! x, y, z of the flux over c, then the density, 1/cm^3; species; cells.
  real(c_double) :: moments(4, 3, cells), F(4, 6, cells), G(4, 6, cells), a, b, n
  integer :: i, s

  do i = 1, cells
    a = mod(i - 1, 7) / 7d0
    b = mod(i - 1, 5) / 5d0
    moments(4, :, i) = [1d33 * (1 + 0.2d0 * a), 1d33 * (0.9d0 + 0.2d0 * b), 1.5d33]
    if (mod(i - 1, 11) == 0) moments(4, :, i) = 0 ! each eleventh cell is empty
    do s = 1, 3
      n = moments(4, s, i) * merge(0.1d0 + 0.1d0 * b, merge(0.3d0 + 0.2d0 * a, 0.5d0, s == 2), s == 1)
      moments(:3, s, i) = n * [0.3d0 * a, 0.3d0 * b, 0.9d0]
    end do
  end do

  ! Six species, a quarter of nu_x each.
  F = moments(:, from, :)
  F(:, [2, 3, 5, 6], :) = 0.25d0 * F(:, [2, 3, 5, 6], :)
  if (rheidae_mix(int(cells, c_size_t), F, G) /= 0) error stop "block: no memory"

  moments(:, 1, :) = G(:, 1, :)
  moments(:, 2, :) = G(:, 4, :)
  moments(:, 3, :) = G(:, 2, :) + G(:, 3, :) + G(:, 5, :) + G(:, 6, :)
  do i = 1, cells
    print '(12es25.16e3)', moments(:, :, i)
  end do
end program
