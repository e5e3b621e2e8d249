"""``dcomm doctor``: what this machine and this installation can do, found by trying, in three seconds.

* :mod:`~dcomm.doctor.finding`: what a check says. :mod:`~dcomm.doctor.parts`: all checks, in order.
* :mod:`~dcomm.doctor.installation`, :mod:`~dcomm.doctor.cpus`, :mod:`~dcomm.doctor.memory`,
  :mod:`~dcomm.doctor.kernel`, :mod:`~dcomm.doctor.settings`, :mod:`~dcomm.doctor.ranks`: the checks of the CPU side;
  :mod:`~dcomm.doctor.cgroup` finds the limits of a container.
* :mod:`~dcomm.doctor.gpu_process` starts :mod:`~dcomm.doctor.gpu`, a process of its own, with
  :mod:`~dcomm.doctor.cuda_part`, :mod:`~dcomm.doctor.cuda_driver`, :mod:`~dcomm.doctor.peer_access` and
  :mod:`~dcomm.doctor.gpu_ranks`.
* :mod:`~dcomm.doctor.run`: all checks side by side, each with a deadline. :mod:`~dcomm.doctor.report` and
  :mod:`~dcomm.doctor.command`: how it is shown.

Nothing here needs the compiled core, or anything but NumPy, at module level: where the core does not load, the doctor
says so.
"""
