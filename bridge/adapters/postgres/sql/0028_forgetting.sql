-- `bridge forget` is on record as well.
comment on column ops_action.action is 'What: recall, revoke, disconnect, drain, replay, dead replay, dead purge, forget.';
