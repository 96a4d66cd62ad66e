-- What each campaign's leads have come to.
SELECT
  COALESCE(campaign, '(none)') AS campaign,
  COUNT(*) AS leads,
  SUM(IF(stage = 'won', 1, 0)) AS won,
  SUM(IF(stage = 'lost', 1, 0)) AS lost,
  SUM(IF(stage IN ('won', 'lost'), 0, 1)) AS open,
  ROUND(SUM(IF(stage = 'won', 1, 0)) / COUNT(*), 4) AS won_of_all,
  ROUND(SUM(IF(stage = 'won', 1, 0)) / NULLIF(SUM(IF(stage IN ('won', 'lost'), 1, 0)), 0), 4) AS won_of_closed,
  ROUND(AVG(IF(stage = 'won', DATEDIFF(updated_at, created_at), NULL)), 2) AS mean_days_to_win
FROM leads
GROUP BY COALESCE(campaign, '(none)')
