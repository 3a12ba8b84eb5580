-- A process that stops says so, and may be asked to.

alter table node add column stopping text collate "C";
alter table node add column stopping_since timestamptz;
comment on column node.stopping is
    'The boot that stops, or that somebody has asked to; null, or an earlier boot of this name: the process goes on.';
comment on column node.stopping_since is 'Since when that boot stops.';

comment on column ops_action.action is 'What: recall, revoke, disconnect, drain, replay, dead replay, dead purge.';
