-- The newest version of every report, from whichever file has it.
WITH everything AS (
  SELECT report_id, report_version, reporting_entity, submitted_month, incident_month, make, injury, air_bags, mileage
  FROM sgo_reports
  UNION ALL
  SELECT report_id, report_version, reporting_entity, submitted_month, incident_month, make, injury, air_bags, mileage
  FROM sgo_adas_archive
),
ranked AS (
  SELECT *, ROW_NUMBER() OVER (PARTITION BY report_id ORDER BY report_version DESC) AS place
  FROM everything
)
SELECT report_id, report_version, reporting_entity, submitted_month, incident_month, make, injury, air_bags, mileage
FROM ranked
WHERE place = 1
