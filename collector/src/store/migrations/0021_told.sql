-- Gaps are kept from when they were told: by their own times, those of a clock that was wrong would be gone at once, or never.
ALTER TABLE {each gap_records} MODIFY COLUMN recorded_at COMMENT 'When the gap was told, by the collector''s clock, UTC';
