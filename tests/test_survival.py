"""Full disks and wrong clocks: a run ends by one message, or as it would."""

import pytest
import test_faults
import tiny_runs


@pytest.mark.parametrize('most', [300, 3000])
def test_a_run_whose_disk_is_full_ends_by_one_message_and_goes_on(
  most, nursery, command, finished, tmp_path
):
  """Whatever could not be written; with space, to the end of any other run."""
  workdir = tmp_path / 'run'
  result = nursery.run(*command(workdir), MOST_FILE_BYTES=str(most))
  assert result.code == 2, (result.code, result.err)
  errors = [x for x in result.err.splitlines() if x.startswith('Error: ')]
  assert len(errors) == 1, result.err
  assert 'File too large' in errors[0]  # what this stand-in for a disk says
  assert not (workdir / 'genotype.json').exists()
  assert nursery.run(*command(workdir)).code == 0
  test_faults._assert_same_run(workdir, finished[0])


def test_a_clock_that_is_set_back_changes_nothing(
  nursery, command, finished, tmp_path
):
  """Neither the order of rows nor which checkpoint is the newest."""
  workdir = tmp_path / 'run'
  clock = 'tests.jumping_clock'
  result = nursery.run(
    *command(workdir, **{'search.num_steps': 16}), module=clock
  )
  assert result.code == 0, result.err
  test_faults._assert_same_run(workdir, finished[0])
  # Resumed, and set back below the times of its files.
  (workdir / 'genotype.json').unlink()
  assert nursery.run(*command(workdir), module=clock).code == 0
  assert tiny_runs.rows(workdir) == tiny_runs.rows(finished[0])
