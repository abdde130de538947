"""What goes wrong, said in one line: which file, which tensor or setting, what is wrong, what to do."""


class JaxchopError(Exception):
  """A failure a person can act on; the command line prints its one line and exits with 1."""

  exit_code = 1


class UsageError(JaxchopError):
  """The request itself is wrong: an unknown setting, a range outside the model, a target that cannot be met."""

  exit_code = 2


class Preempted(JaxchopError):
  """Stopped by SIGTERM after a verified save: run the same command again to go on."""

  exit_code = 75


class Interrupted(JaxchopError):
  """Stopped by SIGINT after a verified save: run the same command again to go on."""

  exit_code = 130
